"""An engine short of blocks, with prompts cut into pieces, or without clients answers the same."""

from __future__ import annotations

from lab.corpus import passage
from lab.testing import Expected, Lab, from_kvasir, requests, stats, tokens, wait_for, whole_chunks


def test_preempted_requests_answer_the_same(lab: Lab, expected: Expected) -> None:
    kvasir = lab.daemon()
    prompts = [passage(number, 1500) for number in range(20, 23)]
    # Three requests grow to 1,900 tokens each, and there is room for 5,120: one has to give way.
    engine = lab.engine(
        kvasir,
        engine={
            "num_gpu_blocks_override": 40,
            "block_size": 128,
            "max_model_len": 4096,
        },
    )
    together = engine.generate(requests(prompts, max_tokens=400))
    assert engine.preemptions() > 0
    assert tokens(together) == [expected(prompt, 400) for prompt in prompts]

    engine.forget()
    again, reused = from_kvasir(
        engine,
        lambda: engine.generate(requests(prompts, max_tokens=400), together=False),
    )
    assert tokens(again) == tokens(together)
    assert reused == sum(whole_chunks(len(prompt)) for prompt in prompts)


def test_prompts_cut_into_pieces_are_saved_whole(lab: Lab, expected: Expected) -> None:
    kvasir = lab.daemon()
    prompts = [passage(number, 3000) for number in range(24, 27)]
    # 400 tokens a step: pieces end inside blocks and inside chunks.
    pieces = {
        "max_num_batched_tokens": 400,
        "enable_chunked_prefill": True,
        "max_num_seqs": 8,
    }
    engine = lab.engine(kvasir, engine=pieces)
    assert tokens(engine.generate(requests(prompts))) == [expected(prompt) for prompt in prompts]
    engine.forget()
    results, reused = from_kvasir(engine, lambda: engine.generate(requests(prompts)))
    assert tokens(results) == [expected(prompt) for prompt in prompts]
    assert reused == sum(whole_chunks(len(prompt)) for prompt in prompts)


def test_an_abort_while_it_loads_leaves_nothing_behind(lab: Lab, expected: Expected) -> None:
    kvasir = lab.daemon()
    engine = lab.engine(kvasir)
    loading, other = passage(28, 8192), passage(29, 2000)
    engine.generate(requests([loading, other]))
    for steps in (1, 2, 3, 4, 1, 1):
        engine.forget()
        aborted, survivor = engine.generate(
            [{"prompt": loading, "abort_after_steps": steps}, {"prompt": other}]
        )
        assert aborted.aborted
        assert survivor.tokens == expected(other)
    engine.forget()
    assert engine.one(loading).tokens == expected(loading)
    # Holds and leases of the aborted requests end with them, not with their deadlines.
    engine.call("idle_steps", seconds=0.2)
    wait_for(lambda: stats(kvasir)["holds"] == 0, "no hold is left", 5)
    wait_for(lambda: stats(kvasir)["read_leases"] == 0, "no read lease is left", 5)
    wait_for(lambda: stats(kvasir)["write_leases"] == 0, "no write lease is left", 5)
