#!/usr/bin/env python3
"""Writes the small tokenizers, and what Hugging Face's library makes of texts with them, that the
tests of ReferenceLM's tokenizer are checked against.

The tokenizers are trained on the King James Bible in ``models/tiny-kjv``, one in the manner of each
family that ReferenceLM reads. Run it from anywhere in an environment with ``tokenizers`` 0.23;
output is the same on every run. ``--check`` writes nothing and exits with status 1 if a file on
disk differs.

Random texts are made of characters that were assigned in Unicode 3.2 and whose properties have not
changed since, and of emoji: the library's tables of normal forms and categories are of Unicode 8
and 9, ReferenceLM's are the platform's. Beyond the Basic Multilingual Plane there are only emoji,
because the library composes U+10041 with an accent as if it were U+0041.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

REPOSITORY = Path(__file__).resolve().parents[2]
DESTINATION = REPOSITORY / "Tests" / "ReferenceLMTests" / "Resources" / "tokenizers"
TINY_KJV = REPOSITORY / "models" / "tiny-kjv"

SEED = 20260101
RANDOM_TEXTS = 250
RANDOM_DECODINGS = 50
TRAINING_CHARACTERS = 400_000
VOCABULARY = 700

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace("{1,3}", "")
BEHAVIORS = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "a",
    "In the beginning God created the heaven and the earth.",
    " And God said, Let there be light: and there was light.",
    "  two spaces before and after  ",
    "tabs\tand\t\ttwo tabs",
    "lines\nand\n\nlines\r\nof DOS\r\n\r\nand old\rMacs",
    "  \n \t \r\n  mixed white space \u00a0 \u2003 \u3000 \u2028 \u0085 \u000b \u000c end",
    "1 12 123 1234 12345678901234567890 3.14159 1,000,000 ½ ² Ⅷ ٣٤٥ १२३",
    "It's don't we're I've I'm you'll he'd IT'S DON'T WE'RE I'VE I'M YOU'LL HE'D 'S 'sx ''s",
    "it\u2019s \u017fhe'\u017f o'clock rock'n'roll",
    'What?! Wait... (really) [yes] {no} <tag/> a_b_c x=y+z; $5.00 #tag @name 50% ~^`|\\ "quoted"',
    "\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family",
    "\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd done",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u1e9b\u0323",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m \u017f\u0323\u0307 e\u0323\u0301 e\u0301\u0323",
    "\u00e9e\u0301 \u212b \u2126 \uac00 \u1100\u1161 \u1112\u1161\u11ab \ufb01 \uff21\uff22",
    "起初神创造天地。 漢字とかな カタカナ 한국어 mixed中文text",
    "فِي الْبَدْءِ خَلَقَ اللهُ السَّمَاوَاتِ وَالأَرْضَ",
    "ในปฐมกาล พระเจ้าทรงเนรมิตฟ้าและแผ่นดิน",
    "בְּרֵאשִׁית בָּרָא אֱלֹהִים",
    "आदि में परमेश्वर ने आकाश और पृथ्वी की सृष्टि की",
    "В начале сотворил Бог небо и землю. ΟΔΥΣΣΕΥΣ Ὀδυσσεύς İstanbul ẞ STRASSE",
    "\u0001\u0002 bell\u0007 escape\u001b[0m del\u007f c1\u0080\u009f",
    "nul\u0000 in\u0000the\u0000\u0000middle\u0000",
    "\u0000",
    "soft\u00adhyphen zero\u200bwidth \u200e\u200f \ufeffbom \ufffd \ufffc \ue000 private",
    "\U0001d400\U0001d401 \U00020000\U00020001 \U0010ffff? \U000e0041",
    "a" * 99 + " " + "b" * 100 + " " + "c" * 101,
    "begat" * 60,
    " " * 70 + "x" + "\n" * 40,
    "!" * 80 + "?!" * 40,
    "the<|endoftext|>end <|endoftext|> <|endoftext|><|endoftext|>",
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>",
    "<|im_start|>system\nYou are.<|im_end|>\n<|im_start|>user\nHi<|im_end|>",
    "<|start_header_id <|start_header_id|",
    "[CLS] in the [MASK] beginning [SEP] [PAD][UNK] [mask] [ MASK ]",
    "<s>And <mask> said</s> it  <mask>  was<mask>so <pad>",
    "selah Selah SELAH selahs xselah \u00e9selah selah. (selah) selah",
    "\u00dcber \u00fcber u\u0308ber UBER \u00dcberall",
    "zyzzyva zyzzyva zyzzyvas",
    "do not can't won't isn't I'm they've we're , . ! ? ' s",
    "Unaffable unaffable inextricable circumlocution",
    "http://example.com/a/b?c=d&e=f#g user@example.org C:\\path\\file.txt",
    "def f(x):\n    return x**2  # squared\n\n\n\tif (a && b) { c[0] = 'd'; }\n",
]


# --- texts --------------------------------------------------------------------------------------


def is_stable(character: str) -> bool:
    """Whether a character of the BMP means today what it meant in Unicode 3.2."""
    old = unicodedata.ucd_3_2_0
    return (
        old.category(character) not in ("Cn", "Cs")
        and old.category(character) == unicodedata.category(character)
        and old.combining(character) == unicodedata.combining(character)
    )


def random_texts() -> list[str]:
    generator = random.Random(SEED)
    every = [chr(code) for code in range(0x10000) if is_stable(chr(code))]
    marks = [character for character in every if unicodedata.category(character) == "Mn"]
    pools: list[tuple[list[str], int]] = [
        ([chr(code) for code in range(0x20, 0x7F)], 40),
        (list("etaoin shrdlu ETAOIN 0123456789"), 60),
        (list(" \n\t\r   "), 25),
        ([chr(code) for code in range(0xA0, 0x250) if is_stable(chr(code))], 15),
        ([mark for mark in marks if "\u0300" <= mark <= "\u0345"], 8),
        ([chr(code) for code in range(0x4E00, 0x9F00)], 8),
        ([chr(code) for code in range(0x1F300, 0x1F600)], 6),
        ([chr(code) for code in range(0x20)], 3),
        (every, 30),
    ]
    weights = [weight for _, weight in pools]
    texts = []
    for _ in range(RANDOM_TEXTS):
        chosen = generator.choices(pools, weights, k=generator.randint(1, 24))
        texts.append("".join(generator.choice(pool) for pool, _ in chosen))
    return texts


# --- tokenizers ---------------------------------------------------------------------------------


def corpus() -> Iterator[str]:
    text = (TINY_KJV / "corpus.txt").read_text(encoding="utf-8")[:TRAINING_CHARACTERS]
    yield from text.splitlines(keepends=True)


def train_byte_level(tokenizer: Tokenizer, special_tokens: list[str]) -> Tokenizer:
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def edited(tokenizer: Tokenizer, edit: Callable[[dict[str, Any]], None]) -> Tokenizer:
    """The tokenizer after a change of its file."""
    content = json.loads(tokenizer.to_str())
    edit(content)
    return Tokenizer.from_str(json.dumps(content))


def make_gpt2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return train_byte_level(tokenizer, ["<|endoftext|>"])


def make_roberta() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    train_byte_level(tokenizer, ["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def make_llama3() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    train_byte_level(tokenizer, [])
    tokenizer = edited(tokenizer, add_unreachable_word)
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"]
    tokenizer.add_special_tokens([f"<|{name}|>" for name in names])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", begin)],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return tokenizer


def add_unreachable_word(content: dict[str, Any]) -> None:
    """Adds a token that no merge makes: only ``ignore_merges`` finds it."""
    vocabulary = content["model"]["vocab"]
    vocabulary["Ġzyzzyva"] = len(vocabulary)


def make_qwen2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    train_byte_level(tokenizer, [])
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("\u00dcber", normalized=True)])
    return tokenizer


def word_piece(lowercase: bool) -> Tokenizer:
    """A tokenizer with the commonest characters, words and ends of words.

    The library's own trainer is not used because its result is another on each run.
    """
    words: Counter[str] = Counter()
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    for line in corpus():
        words.update(re.findall(r"[A-Za-z]+", normalizer.normalize_str(line)))
    pieces: Counter[str] = Counter(words)
    for word, count in words.items():
        for start in range(1, len(word) - 1):
            pieces["##" + word[start:]] += count
    characters = sorted({character for word in words for character in word})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens += [*"0123456789.,;:!?'()-\"é神中ا", *characters, *("##" + c for c in characters)]
    seen = set(tokens)
    ranked = sorted(pieces.items(), key=lambda item: (-item[1], item[0]))
    tokens += [token for token, _ in ranked if token not in seen][: VOCABULARY - len(tokens)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(tokens[:5])
    return tokenizer


def make_bert_uncased() -> Tokenizer:
    tokenizer = word_piece(lowercase=True)
    tokenizer.add_tokens(
        [AddedToken("Selah", single_word=True, normalized=True), AddedToken("\u00dcber")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def make_bert_cased() -> Tokenizer:
    tokenizer = word_piece(lowercase=False)
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens([AddedToken("[mask]", lstrip=True, rstrip=True)])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": make_gpt2,
    "roberta": make_roberta,
    "llama3": make_llama3,
    "qwen2": make_qwen2,
    "bert-uncased": make_bert_uncased,
    "bert-cased": make_bert_cased,
}


def tokenizer_file(name: str, tokenizer: Tokenizer) -> str:
    """The file; that of GPT-2 in the old form, without a type and with merges in one string."""
    content = json.loads(tokenizer.to_str())
    if name == "gpt2":
        model = content["model"]
        del model["type"]
        del content["pre_tokenizer"]["use_regex"]
        model["merges"] = [" ".join(merge) for merge in model["merges"]]
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


# --- what is expected ---------------------------------------------------------------------------


def make_encodings(tokenizer: Tokenizer, texts: list[str]) -> list[dict[str, Any]]:
    """Ids and the text they decode to; ``decoded`` is left out where it is the text itself."""
    cases = []
    for index, text in enumerate(texts):
        both = (False, True) if index < len(TEXTS) else (index % 2 == 0,)
        for special in both:
            ids = tokenizer.encode(text, add_special_tokens=special).ids
            case: dict[str, Any] = {"text": index, "special": special, "ids": ids}
            decoded = tokenizer.decode(ids, skip_special_tokens=special)
            if decoded != text:
                case["decoded"] = decoded
            cases.append(case)
    return cases


def make_decodings(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Random ids, a few of which no token has."""
    generator = random.Random(SEED)
    size = tokenizer.get_vocab_size()
    cases = []
    for _ in range(RANDOM_DECODINGS):
        ids = [generator.randrange(size + 5) for _ in range(generator.randint(1, 40))]
        skip = generator.random() < 0.5
        text = tokenizer.decode(ids, skip_special_tokens=skip)
        cases.append({"ids": ids, "skip": skip, "decoded": text})
    return cases


def make_expected(tokenizer: Tokenizer, texts: list[str]) -> str:
    return document(
        {
            "encodings": make_encodings(tokenizer, texts),
            "decodings": make_decodings(tokenizer),
        }
    )


def pre_tokenizer_parts() -> list[Any]:
    split = pre_tokenizers.Split
    return [
        *[split(Regex(r"\s+|[aeiou]"), behavior) for behavior in BEHAVIORS],
        split("e", "removed"),
        split(" t", "merged_with_previous"),
        split(".", "isolated"),
        split(Regex(r"\p{L}+"), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.BertPreTokenizer(),
        pre_tokenizers.Whitespace(),
        pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Digits(individual_digits=False),
        *[pre_tokenizers.Punctuation(behavior) for behavior in BEHAVIORS],
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(True)]),
    ]


def normalizer_parts() -> list[Any]:
    return [
        normalizers.NFC(),
        normalizers.NFD(),
        normalizers.NFKC(),
        normalizers.NFKD(),
        normalizers.Lowercase(),
        normalizers.StripAccents(),
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
        normalizers.BertNormalizer(),
        normalizers.BertNormalizer(clean_text=False, strip_accents=True, lowercase=False),
        normalizers.BertNormalizer(handle_chinese_chars=False, strip_accents=False),
    ]


def make_parts(texts: list[str]) -> str:
    """What single pre-tokenizers and normalizers make of the shorter texts."""
    short = [index for index, text in enumerate(texts) if len(text) < 50][:70]
    return document(
        {
            "texts": short,
            "pre_tokenizers": [
                {
                    "config": json.loads(part.__getstate__()),
                    "pieces": [
                        [piece for piece, _ in part.pre_tokenize_str(texts[i])] for i in short
                    ],
                }
                for part in pre_tokenizer_parts()
            ],
            "normalizers": [
                {
                    "config": json.loads(part.__getstate__()),
                    "normalized": [part.normalize_str(texts[i]) for i in short],
                }
                for part in normalizer_parts()
            ],
        }
    )


def document(sections: dict[str, list[Any]]) -> str:
    """JSON with one line for each element: a difference in review shows which."""
    parts = []
    for name, elements in sections.items():
        lines = ",\n".join(json.dumps(element, separators=(",", ":")) for element in elements)
        parts.append(f'"{name}": [\n{lines}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def make_files() -> dict[Path, str]:
    texts = TEXTS + random_texts()
    files = {
        DESTINATION / "texts.json": document({"texts": texts}),
        DESTINATION / "parts.json": make_parts(texts),
    }
    for name, make in MAKERS.items():
        file = tokenizer_file(name, make())
        files[DESTINATION / name / "tokenizer.json"] = file
        expected = make_expected(Tokenizer.from_str(file), texts)
        files[DESTINATION / name / "expected.json"] = expected
    tiny = Tokenizer.from_file(str(TINY_KJV / "tokenizer.json"))
    files[DESTINATION / "tiny-kjv" / "expected.json"] = make_expected(tiny, texts)
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    options = parser.parse_args()
    status = 0
    for path, text in make_files().items():
        if options.check:
            same = path.exists() and path.read_text(encoding="utf-8") == text
            print(f"{path}: {'up to date' if same else 'differs, run this without --check'}")
            status = status if same else 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path)
    return status


if __name__ == "__main__":
    sys.exit(main())
