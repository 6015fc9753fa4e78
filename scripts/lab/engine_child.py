"""A vLLM engine in this process, driven by lines of JSON: what `lab.engine.Engine` starts.

One process instead of the three of `vllm serve`, in a few seconds, with each scheduler step in our
hands: an abort can come exactly between two steps. Commands arrive on standard input, replies leave
on the file descriptor named in `LAB_REPLY_FD`; standard output belongs to vLLM's log.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from typing import Any


class EngineChild:
    """The engine and the commands that it knows."""

    def __init__(self, config: dict[str, Any]) -> None:
        from vllm import LLM

        start = time.perf_counter()
        self.llm = LLM(disable_log_stats=False, skip_tokenizer_init=True, **config)
        self.engine = self.llm.llm_engine
        self.start_s = time.perf_counter() - start
        self.next_id = 0

    # -- commands ----------------------------------------------------------------------------------

    def generate(
        self, requests: list[dict[str, Any]], together: bool = True
    ) -> list[dict[str, Any]]:
        """Runs requests, all at once or one after the other; says what each gave and when."""
        if together:
            return self._run(requests)
        return [self._run([request])[0] for request in requests]

    def reset_prefix_cache(self, connector: bool = False) -> bool:
        """Empties vLLM's own prefix cache; `connector` says that Kvasir's content is void too."""
        return bool(self.llm.reset_prefix_cache(reset_connector=connector))

    def idle_steps(self, seconds: float) -> int:
        """Lets the engine step without requests, while a connector still has work."""
        end, steps = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            self.engine.step()
            steps += 1
            time.sleep(0.002)
        return steps

    def cpu_s(self) -> float:
        """CPU time of all threads, which a busy machine disturbs less than the clock."""
        return time.process_time()

    def counters(self) -> dict[str, float]:
        """vLLM's counters, summed over their labels, and `NAME TIER` for those that tell tiers."""
        found: dict[str, float] = {}
        for metric in self.llm.get_metrics():
            value = getattr(metric, "value", None)
            if isinstance(value, (int, float)):
                tier = metric.labels.get("tier") or metric.labels.get("source")
                for name in (metric.name, *([f"{metric.name} {tier}"] if tier else ())):
                    found[name] = found.get(name, 0) + value
        return found

    # -- one run of the step loop ----------------------------------------------------------------

    def _run(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        records: dict[str, dict[str, Any]] = {}
        order = [self._add(request, records) for request in requests]
        steps = 0
        while self.engine.has_unfinished_requests():
            begin = time.perf_counter()
            outputs = self.engine.step()
            now = time.perf_counter()
            steps += 1
            for output in outputs:
                self._note(records[output.request_id], output, begin, now)
            for name in order:
                record = records[name]
                if record["abort_after_steps"] == steps and not record["finished"]:
                    self.engine.abort_request([name])
                    record["finished"] = record["aborted"] = True
        return [self._result(records[name]) for name in order]

    def _add(self, request: dict[str, Any], records: dict[str, dict[str, Any]]) -> str:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        name = f"request-{self.next_id}"
        self.next_id += 1
        prompt = TokensPrompt(prompt_token_ids=request["prompt"])
        if request.get("cache_salt") is not None:
            prompt["cache_salt"] = request["cache_salt"]
        params = SamplingParams(
            temperature=0.0,
            max_tokens=request.get("max_tokens", 16),
            ignore_eos=True,
            detokenize=False,
            logprobs=request.get("logprobs"),
        )
        records[name] = {
            "added": time.perf_counter(),
            "prompt": request["prompt"],
            "abort_after_steps": request.get("abort_after_steps"),
            "tokens": [], "logprobs": [], "times": [], "steps": [],
            "cached": None, "finished": False, "aborted": False,
        }  # fmt: skip
        self.engine.add_request(name, prompt, params)
        return name

    @staticmethod
    def _note(record: dict[str, Any], output: Any, begin: float, now: float) -> None:
        completion = output.outputs[0]
        new = len(completion.token_ids) - len(record["tokens"])
        if new > 0:
            record["times"] += [now] * new
            record["steps"] += [now - begin] * new
            record["tokens"] = list(completion.token_ids)
        if completion.logprobs is not None:
            record["logprobs"] = [
                float(step[token].logprob)
                for step, token in zip(completion.logprobs, completion.token_ids, strict=False)
            ]
        if output.num_cached_tokens is not None:
            record["cached"] = output.num_cached_tokens
        record["finished"] = record["finished"] or output.finished

    @staticmethod
    def _result(record: dict[str, Any]) -> dict[str, Any]:
        times = record["times"]
        return {
            "tokens": record["tokens"],
            "logprobs": record["logprobs"],
            "cached": record["cached"],
            "prompt_tokens": len(record["prompt"]),
            "aborted": record["aborted"],
            "ttft_ms": (times[0] - record["added"]) * 1000 if times else None,
            "total_ms": (times[-1] - record["added"]) * 1000 if times else None,
            "gaps_ms": [(b - a) * 1000 for a, b in itertools.pairwise(times)],
            "first_token_at": times[0] if times else None,
            "last_token_at": times[-1] if times else None,
        }


def main() -> None:
    replies = os.fdopen(int(os.environ["LAB_REPLY_FD"]), "w", buffering=1)

    def reply(**fields: Any) -> None:
        replies.write(json.dumps(fields) + "\n")
        replies.flush()

    child = EngineChild(json.loads(sys.argv[1]))
    reply(ok={"start_s": child.start_s})
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        try:
            reply(ok=getattr(child, name)(**command))
        # Whatever goes wrong is the parent's to report; the engine goes on where it can.
        except Exception as error:  # noqa: BLE001
            import traceback

            traceback.print_exc()
            reply(error=f"{type(error).__name__}: {error}")
    child.engine.engine_core.shutdown()
    # Python would spend seconds on taking apart what vLLM has put together.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
