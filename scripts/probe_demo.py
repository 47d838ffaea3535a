"""Where in the demo model is the mood of a story known? Linear probes on stories with known attributes.

python scripts/probe_demo.py             # prints the table
python scripts/probe_demo.py --write     # also writes it into docs/probes.md, and docs/images/probe_demo.png

Every text is the beginning of a story of the demo world: its first sentence, perhaps the weather, and the event. The
probe reads one token: the full stop at the end, which is the same token in every text. What it knows of the
story can only have come through attention. Test texts are of groups that the probe has not seen: for mood and tense
other event sentences (each mood has five), for number and place other animals, for the animal other places.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo_world import Story, sample_story, split_sentences

from loom_gguf import Model
from loom_gguf.probes import ProbeResult, collect_rows, draw_curves, probe_layers

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "probes.md"
PICTURE = ROOT / "docs" / "images" / "probe_demo.png"
BEGIN, END = "<!-- begin: scripts/probe_demo.py --write -->\n", "<!-- end -->\n"

#: title -> (attribute, what the groups are)
PROBES = {
    "mood": ("mood", "event"),
    "number": ("number", "who"),
    "tense": ("tense", "event"),
    "place": ("place", "who"),
    "animal": ("who", "place"),
}


@dataclass(frozen=True)
class Beginning:
    """The first sentences of a story, up to its event."""

    story: Story
    before: str  # without the event
    text: str
    event: str  # the event sentence's frame: its wording, whatever the names, tense and things in it

    def attribute(self, name: str) -> str:
        return self.event if name == "event" else str(getattr(self.story, name))


def beginnings(n: int, seed: int = 0) -> list[Beginning]:
    """Beginnings of `n` stories in which nothing shows the mood before the event does."""
    rng = random.Random(seed)
    found: list[Beginning] = []
    while len(found) < n:
        story = sample_story(rng)
        choices = [dict(sentence) for sentence in story.sentences]
        roles = [choice["role"] for choice in choices]
        if "action" in roles:  # its adverb would tell the mood, in words that stories of all events share
            continue
        at = roles.index("event")
        sentences = split_sentences(story.text)
        found.append(Beginning(story, " ".join(sentences[:at]), " ".join(sentences[: at + 1]), choices[at]["frame"]))
    return found


def measure(model: Model, stories: Sequence[Beginning], **settings: int) -> dict[str, ProbeResult]:
    """One result for the mood before the event, one for every attribute after it."""
    results = {}
    for prefix, texts in (("before", [s.before for s in stories]), ("after", [s.text for s in stories])):
        ends = {model.tokenize(text)[-1] for text in texts}
        if len(ends) != 1:
            raise SystemExit(f"the texts end in {len(ends)} different tokens")
        features = collect_rows(model, texts, "last_token")
        for title, (attribute, group) in PROBES.items():
            if prefix == "before" and title != "mood":
                continue
            results[f"{title} {prefix} the event"] = probe_layers(
                features,
                [s.attribute(attribute) for s in stories],
                groups=[s.attribute(group) for s in stories],
                **settings,
            )
    return results


def table(results: dict[str, ProbeResult]) -> str:
    """Markdown: a line per hidden state, a column per probe."""
    some = next(iter(results.values()))
    lines = [
        "| state | " + " | ".join(results) + " |",
        "| --- |" + " ---: |" * len(results),
    ]
    for i, state in enumerate(some.states):
        cells = [f"{r.accuracy[i]:.2f} ({r.low[i]:.2f} to {r.high[i]:.2f})" for r in results.values()]
        lines.append(f"| {state} | " + " | ".join(cells) + " |")
    rows = {
        "shuffled labels, highest": [f"{r.control.max():.2f}" for r in results.values()],
        "commonest label": [f"{r.chance:.2f}" for r in results.values()],
        "labels": [str(len(r.classes)) for r in results.values()],
        "groups": [str(r.n_groups) for r in results.values()],
        "known from": [r.known_from or "nowhere" for r in results.values()],
    }
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write docs/probes.md and the picture")
    args = parser.parse_args()
    start = time.perf_counter()
    with Model("demo", n_ctx=512) as model:
        stories = beginnings(args.stories, args.seed)
        results = measure(model, stories, repeats=args.repeats, seed=args.seed)
    some = next(iter(results.values()))
    unfinished = sum(int(r.unfinished.sum()) for r in results.values())
    text = (
        f"{args.stories} stories (seed {args.seed}), {some.folds} folds of whole groups, {args.repeats} times, "
        f"C = {some.c:g}; fits that did not converge: {unfinished}. Accuracy and {some.confidence:.0%} interval:\n\n"
        + table(results)
    )
    print(text)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    if args.write:
        PICTURE.parent.mkdir(exist_ok=True)
        draw_curves(results).save(PICTURE, dpi=100)
        page = PAGE.read_text("utf-8")
        head, _, rest = page.partition(BEGIN)
        PAGE.write_text(head + BEGIN + text + END + rest.partition(END)[2], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
