"""Measure the demo model through llama.cpp, print what was found and write ``docs/demo-model.md``.

    python scripts/eval_demo_model.py --train-log build/demo/train.json

The GGUF file itself is measured, with plain ``llama_cpp.Llama``: torch is not needed, and ``tokenizers`` only
for one check, which is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from demo_report import Report, ReportInput, write_document
from demo_world import MAIN_ATTRIBUTES, parse_sentence, parse_story, split_sentences
from demo_world_chat import (
    ASSISTANT,
    BEGIN,
    END,
    SYSTEM_MESSAGES,
    USER,
    Chat,
    parse_request,
    render_chat,
    sample_chat,
    sample_document,
)
from llama_cpp import Llama

ROOT = Path(__file__).resolve().parent.parent
#: plain sampling from the model's own distribution: nothing cut off, nothing penalised
PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
FUZZ_ALPHABET = (
    "aZ09 \n\t\r'\"!?.,-_\u00e9\u00df\u00f1\u0416\u4e2d\u6587\u3042\ud55c"
    "\U0001f98a\U0001f469\u200d\U0001f680\u0301\u00a0\u200b\u3000"
)


@dataclass
class Generated:
    """What sampling gave at one temperature."""

    temperature: float
    texts: list[str] = field(default_factory=list)
    sentences: int = 0
    good_sentences: int = 0
    good_stories: int = 0
    chats: int = 0
    seconds: float = 0.0
    tokens: int = 0
    bad: list[str] = field(default_factory=list)


@dataclass
class Answers:
    """How chat requests were answered."""

    asked: int = 0
    parsed: int = 0
    right: int = 0
    per_attribute: Counter[str] = field(default_factory=Counter)
    per_attribute_right: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[str | None, str, str]] = field(default_factory=list)


class Model:
    """The GGUF file in llama.cpp, with the ids of the special tokens."""

    def __init__(self, path: Path, threads: int) -> None:
        self.llama = Llama(
            str(path), n_ctx=512, n_threads=threads, n_threads_batch=threads, logits_all=True, verbose=False
        )
        self.begin, self.end, self.user, self.assistant = (
            self.ids(token)[0] for token in (BEGIN, END, USER, ASSISTANT)
        )

    def ids(self, text: str) -> list[int]:
        """Token ids of ``text``; special tokens are read as such and none is added."""
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)

    def sample(self, prompt: list[int], temperature: float, seed: int, limit: int = 250) -> list[int]:
        """The ids up to and without the end token or, in a chat, up to and with the user token."""
        self.llama.set_seed(seed)
        out: list[int] = []
        for token in self.llama.generate(prompt, temp=temperature, **PLAIN):
            if token == self.end or len(out) == limit:
                break
            out.append(token)
            if token == self.user:
                break
        return out

    def negative_log_prob(self, ids: list[int]) -> float:
        """-log p (nats) of all ids but the first."""
        self.llama.reset()
        self.llama.eval(ids)
        logits = self.llama.scores[: len(ids) - 1].astype(np.float64)
        top = logits.max(axis=1)
        norm = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        return float((norm - logits[np.arange(len(ids) - 1), ids[1:]]).sum())


def generate_stories(model: Model, temperature: float, count: int, seed: int) -> Generated:
    """``count`` bare stories, sampled from the begin token alone; chats that come up are left out."""
    result = Generated(temperature)
    started = time.monotonic()
    attempt = 0
    while len(result.texts) < count:
        ids = model.sample([model.begin], temperature, seed + attempt)
        attempt += 1
        result.tokens += len(ids) + 1
        if ids and ids[-1] == model.user:
            result.chats += 1
            continue
        text = model.llama.detokenize(ids, special=True).decode(errors="replace")
        result.texts.append(text)
        for sentence in split_sentences(text):
            result.sentences += 1
            if parse_sentence(sentence) is not None:
                result.good_sentences += 1
            else:
                result.bad.append(sentence)
        result.good_stories += parse_story(text) is not None
    result.seconds = time.monotonic() - started
    return result


def answer_chats(model: Model, chats: list[Chat], temperature: float, seed: int) -> Answers:
    """Ask the last request of every chat through the file's own chat template; earlier turns are given."""
    result = Answers()
    for number, chat in enumerate(chats):
        messages = chat.messages()[:-1]
        request = chat.turns[-1][0]
        reply = model.llama.create_chat_completion(
            messages, temperature=temperature, max_tokens=250, seed=seed + number, **PLAIN
        )
        answer = reply["choices"][0]["message"]["content"]
        story = parse_story(answer)
        parsed = parse_request(request)
        assert parsed is not None
        tense = SYSTEM_MESSAGES[chat.system] if chat.system else None
        wanted = parsed[0] | ({"tense": tense} if tense else {})
        right = story is not None
        for attribute, value in wanted.items():
            fits = story is not None and getattr(story, attribute) == value
            result.per_attribute[attribute] += 1
            result.per_attribute_right[attribute] += fits
            right = right and fits
        result.asked += 1
        result.parsed += story is not None
        result.right += right
        result.samples.append((chat.system, request, answer))
    return result


def held_out(model: Model, seed: int, count: int) -> dict[str, tuple[float, float, int]]:
    """Kind of document -> (loss, entropy of the grammar, tokens), both in nats per held-out token."""
    rng = random.Random(f"{seed}-held-out")
    sums = {kind: [0.0, 0.0, 0] for kind in ("all", "story", "chat")}
    for _ in range(count):
        document = sample_document(rng)
        ids = model.ids(document.text)
        loss = model.negative_log_prob(ids)
        for kind in ("all", document.kind):
            sums[kind][0] += loss
            sums[kind][1] -= document.log_prob
            sums[kind][2] += len(ids) - 1
    return {kind: (loss / n, entropy / n, n) for kind, (loss, entropy, n) in sums.items() if n}


def training_overlap(seed: int, documents: int, texts: list[str], held_out_count: int) -> tuple[int, int]:
    """How many of the generated ``texts`` and of the held-out documents are among the training documents."""
    rng = random.Random(f"{seed}-train")
    seen = {sample_document(rng).text for _ in range(documents)}
    held_out_rng = random.Random(f"{seed}-held-out")
    held = sum(sample_document(held_out_rng).text in seen for _ in range(held_out_count))
    return sum(f"{BEGIN}{text}{END}" in seen for text in texts), held


def _texts_to_tokenize(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(f"{seed}-tokens")
    yield from ("", " ", "\n", "a", "  two  spaces ", "don't we'll it's", "x" * 40, "naïve café", "🦊" * 3)
    yield from (
        "tabs\tand\r\nlines\n\n\nend  ",
        "12345 67.8%",
        "ÀÉ Жук 中文字 한글 عربى",
        "\u200b\ufeff\u00a0",
    )
    for _ in range(count):
        yield "".join(rng.choice(FUZZ_ALPHABET) for _ in range(rng.randrange(1, 60)))
        yield re.sub(r"<\|\w+\|>", "", sample_document(rng).text)


def check_tokenizer(model: Model, path: Path, seed: int, count: int = 500) -> tuple[int, int] | None:
    """(texts, texts with other ids) in ``tokenizers`` and llama.cpp; None where not installed."""
    try:
        import gguf
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    except ImportError:
        return None
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    texts = list(_texts_to_tokenize(seed, count))
    different = 0
    for text in texts:
        ids = model.llama.tokenize(text.encode(), add_bos=False, special=False)
        back = model.llama.detokenize(ids).decode()
        different += tokenizer.encode(text).ids != ids or back != text
    return len(texts), different


def check_template(model: Model, chats: list[Chat]) -> int:
    """How many chats the file's own template renders in another way than the training text."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = Jinja2ChatFormatter(
        template=model.llama.metadata["tokenizer.chat_template"],
        eos_token=END,
        bos_token=BEGIN,
        add_generation_prompt=True,
    )
    different = 0
    for chat in chats:
        story = chat.turns[-1][1].text
        prompt = formatter(messages=chat.messages()[:-1]).prompt
        different += prompt + story + END != render_chat(chat)
    return different


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "loom_gguf/data/demo.gguf")
    parser.add_argument("--train-log", type=Path, default=ROOT / "build/demo/train.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/demo-model.md")
    parser.add_argument("--stories", type=int, default=500, help="stories per temperature")
    parser.add_argument("--chats", type=int, default=200, help="requests; as many second turns are asked again")
    parser.add_argument("--held-out", type=int, default=1000, help="documents for the loss")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.3, 0.8, 1.0])
    parser.add_argument("--seed", type=int, default=0, help="the training seed")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    model = Model(args.model, args.threads)
    log = json.loads(args.train_log.read_text()) if args.train_log.exists() else None
    report = Report()
    rng = random.Random(f"{args.seed}-chat-eval")
    firsts, seconds = [], []
    while len(firsts) < args.chats or len(seconds) < args.chats:
        chat = sample_chat(rng)
        (firsts if len(chat.turns) == 1 else seconds).append(chat)
    firsts, seconds = firsts[: args.chats], seconds[: args.chats]

    generated = [generate_stories(model, t, args.stories, 1000 * i) for i, t in enumerate(args.temperatures, 1)]
    data = ReportInput(
        path=args.model.resolve().relative_to(ROOT) if args.model.resolve().is_relative_to(ROOT) else args.model,
        size=args.model.stat().st_size,
        digest=sha256(args.model.read_bytes()).hexdigest(),
        metadata=model.llama.metadata,
        log=log,
        losses=held_out(model, args.seed, args.held_out),
        generated=generated,
        answers={
            "first request": answer_chats(model, firsts, 0.8, 10),
            "second request": answer_chats(model, seconds, 0.8, 20),
        },
        tokenizer=check_tokenizer(model, args.model, args.seed),
        template=(2 * args.chats, check_template(model, firsts + seconds)),
        overlap=None
        if log is None
        else training_overlap(
            args.seed, log["documents"], [text for g in generated for text in g.texts], args.held_out
        ),
        held_out=args.held_out,
        attributes=MAIN_ATTRIBUTES,
    )
    write_document(report, data)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(report.text(), encoding="utf-8")
    print(report.text())
    for result in generated:
        for sentence in result.bad[:8]:
            print(f"not accepted at {result.temperature}: {sentence}")


if __name__ == "__main__":
    main()
