"""The text of ``docs/demo-model.md``, made from what ``eval_demo_model.py`` measured."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import demo_world_grammar as grammar
from demo_world_chat import CHAT_SHARE


class GeneratedLike(Protocol):
    """See ``eval_demo_model.Generated``."""

    temperature: float
    texts: list[str]
    sentences: int
    good_sentences: int
    good_stories: int
    chats: int
    tokens: int


class AnswersLike(Protocol):
    """See ``eval_demo_model.Answers``."""

    asked: int
    parsed: int
    right: int
    per_attribute: Mapping[str, int]
    per_attribute_right: Mapping[str, int]
    samples: list[tuple[str | None, str, str]]


@dataclass(frozen=True)
class ReportInput:
    """Everything that the document says, measured."""

    path: Path
    size: int
    digest: str
    metadata: Mapping[str, str]
    log: Mapping[str, Any] | None
    losses: Mapping[str, tuple[float, float, int]]
    generated: Sequence[GeneratedLike]
    answers: Mapping[str, AnswersLike]
    tokenizer: tuple[int, int] | None
    template: tuple[int, int]
    overlap: tuple[int, int] | None
    held_out: int
    attributes: Sequence[str]


@dataclass
class Report:
    """Markdown, line by line."""

    lines: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        """Lines, then an empty one."""
        self.lines += [*lines, ""]

    def paragraph(self, *parts: str) -> None:
        """The parts as one paragraph, broken into lines."""
        self.add(textwrap.fill(" ".join(parts), width=100, break_long_words=False, break_on_hyphens=False))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; all columns but the first are numbers."""
        rule = ["---"] + ["---:"] * (len(head) - 1)
        self.add(*("| " + " | ".join(row) + " |" for row in (head, rule, *rows)))

    def text(self) -> str:
        """The document."""
        return "\n".join(self.lines).rstrip() + "\n"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _intro(report: Report, data: ReportInput) -> None:
    meta = data.metadata
    report.add("# The demo model")
    report.add("<!-- Written by scripts/eval_demo_model.py; do not edit by hand. -->")
    report.paragraph(
        f"`{data.path}` is a small language model that this project trained itself, from nothing, on",
        "text of a generated toy language. It is there so that everything can be tried and tested",
        "without a download, and because much is known of it that is not known of other models: the",
        "attributes of every training text, and the exact probability of every text, hence the",
        "entropy that no loss can go below.",
    )
    rows = [
        ("file size", f"{data.size:,} bytes"),
        ("SHA-256", f"`{data.digest}`"),
        ("architecture", f"`{meta['general.architecture']}`, matrices F16, norms F32"),
        ("layers", meta["llama.block_count"]),
        ("width", meta["llama.embedding_length"]),
        (
            "heads (key/value heads)",
            f"{meta['llama.attention.head_count']} ({meta['llama.attention.head_count_kv']})",
        ),
        ("feed-forward width", meta["llama.feed_forward_length"]),
        ("vocabulary", meta["llama.vocab_size"] + " (byte-level BPE)"),
        ("context", meta["llama.context_length"] + " tokens"),
        ("license", meta["general.license"]),
    ]
    if data.log is not None:
        rows += [
            ("training tokens", f"{data.log['tokens']:,} (each seen once)"),
            ("training documents", f"{data.log['documents']:,}, of which {CHAT_SHARE:.0%} chats on average"),
            ("training steps", f"{data.log['steps']:,}"),
            (
                "training time (wall clock)",
                f"{data.log['seconds'] / 60:.1f} minutes on {data.log['threads']} CPU thread(s)",
            ),
        ]
    report.table(("what", "value"), rows)


def _world(report: Report) -> None:
    report.add("## The language")
    report.paragraph(
        "A text is a story of 4 to 7 sentences, or a chat in which stories are asked for. Every story",
        "has these attributes, the first five of them drawn independently of each other:",
    )
    rows = [
        ("who", str(len(grammar.WHO)), ", ".join(grammar.WHO)),
        ("place", str(len(grammar.PLACES)), ", ".join(grammar.PLACES)),
        ("mood", str(len(grammar.MOODS)), ", ".join(grammar.MOODS)),
        (
            "number",
            str(len(grammar.NUMBERS)),
            ", ".join(f"{k} ({v:.0%})" for k, v in grammar.NUMBERS.items()),
        ),
        ("tense", str(len(grammar.TENSES)), ", ".join(f"{k} ({v:.0%})" for k, v in grammar.TENSES.items())),
        ("name", str(len(grammar.NAMES)), ", ".join(grammar.NAMES) + " (two of them in the plural)"),
        ("object", str(len(grammar.OBJECTS)), ", ".join(grammar.OBJECTS) + ", each with an adjective"),
        ("companion", str(len(grammar.COMPANIONS)), ", ".join(grammar.COMPANIONS) + ", or none"),
        ("weather", str(len(grammar.WEATHERS)), ", ".join(grammar.WEATHERS) + ", or none"),
    ]
    report.add("| attribute | values | which |", "| --- | ---: | --- |", *("| " + " | ".join(r) + " |" for r in rows))
    report.paragraph(
        "The word for a mood never stands in a story: the mood shows in what happens, in how things",
        "are done and in what is said. Verbs, nouns and pronouns agree with the number (and gender)",
        "of the characters, all verbs share the tense, and what stands in a place stands in no other.",
        "`parse_sentence` and `parse_story` of `scripts/demo_world.py` read the attributes back from",
        "the text alone and reject what does not agree.",
    )


def _quality(report: Report, data: ReportInput) -> None:
    report.add("## How well it has learned the language")
    report.paragraph(
        f"Loss on {data.held_out:,} held-out documents, beside the entropy of the grammar on the same",
        "documents (the mean of the exact -log p, which is the least that a loss can be on average):",
    )
    names = {"all": "all", "story": "bare stories", "chat": "chats"}
    rows = [
        (names[kind], f"{n:,}", f"{loss:.4f}", f"{entropy:.4f}", f"{100 * (loss / entropy - 1):+.1f} %")
        for kind, (loss, entropy, n) in data.losses.items()
    ]
    report.table(("documents", "tokens", "loss (nats/token)", "entropy (nats/token)", "loss over entropy"), rows)
    report.paragraph(
        "Stories sampled from the begin token alone, nothing cut off from the model's distribution",
        "(no top-k, no top-p), and what the parser says of them. A story is accepted when all its",
        "sentences are and all their attributes agree:",
    )
    rows = [
        (
            f"{g.temperature:g}",
            f"{len(g.texts):,}",
            f"{g.sentences:,}",
            _percent(g.good_sentences, g.sentences),
            _percent(g.good_stories, len(g.texts)),
            _percent(len(set(g.texts)), len(g.texts)),
        )
        for g in data.generated
    ]
    report.table(
        ("temperature", "stories", "sentences", "sentences accepted", "stories accepted", "distinct stories"),
        rows,
    )
    report.paragraph(
        "Chat requests, asked through the chat template in the file, at temperature 0.8. An answer is",
        "right when it is an accepted story and has every attribute that was asked for (the tense is",
        "asked for in a system message); one that is not accepted counts as wrong in every column. For a",
        "second request the chat before it is given:",
    )
    columns = ("who", "place", "mood", "number", "tense")
    rows = [
        (
            kind,
            f"{a.asked:,}",
            _percent(a.parsed, a.asked),
            _percent(a.right, a.asked),
            *(_percent(a.per_attribute_right[key], a.per_attribute[key]) for key in columns),
        )
        for kind, a in data.answers.items()
    ]
    report.table(("request", "asked", "accepted", "right", *(f"{key} right" for key in columns)), rows)
    checks = [f"- chats that the file's template renders unlike the training text: {data.template[1]} of "]
    checks[0] += f"{data.template[0]:,}"
    if data.tokenizer is not None:
        total, different = data.tokenizer
        checks.append(
            f"- texts (Unicode, emoji, line breaks, stories) whose token ids differ between `tokenizers` and "
            f"llama.cpp, or that do not come back from their ids: {different} of {total:,}"
        )
    if data.overlap is not None:
        stories = sum(len(g.texts) for g in data.generated)
        checks.append(f"- sampled stories that are among the training documents: {data.overlap[0]} of {stories:,}")
        checks.append(f"- held-out documents that are: {data.overlap[1]} of {data.held_out:,}")
    report.add("Checks:", "", *checks)


def _samples(report: Report, data: ReportInput) -> None:
    report.add("## Samples")
    for g in data.generated:
        report.add(f"The first three stories at temperature {g.temperature:g}:")
        for text in g.texts[:3]:
            report.add(f"> {text.strip()}")
    report.add("The first three answers to chat requests, at temperature 0.8:")
    for system, request, answer in next(iter(data.answers.values())).samples[:3]:
        if system:
            report.add(f"> *System:* {system}", ">", f"> *User:* {request}", ">", f"> *Assistant:* {answer}")
        else:
            report.add(f"> *User:* {request}", ">", f"> *Assistant:* {answer}")


def _regenerate(report: Report) -> None:
    report.add("## How to make it again")
    report.add(
        "```sh",
        "pip install torch numpy gguf tokenizers llama-cpp-python",
        "python scripts/train_demo_model.py      # trains on one CPU thread, writes loom_gguf/data/demo.gguf",
        "python scripts/eval_demo_model.py       # measures it, writes this page",
        "python scripts/demo_world.py --stories 3             # stories of the language itself",
        "python scripts/train_demo_model.py --write-corpus stories.jsonl  # with attributes",
        "```",
    )
    report.paragraph(
        "All is drawn from `--seed`. The last bits of a float sum depend on the processor and on the",
        "version of torch, so a file that is trained elsewhere is another one, of the same quality.",
    )


def write_document(report: Report, data: ReportInput) -> None:
    """Fill ``report`` with the whole page."""
    _intro(report, data)
    _world(report)
    _quality(report, data)
    _samples(report, data)
    _regenerate(report)
