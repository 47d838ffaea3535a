"""Train the demo model that ships with loom_gguf, from nothing, on text of the demo world.

    python scripts/train_demo_model.py                               # trains, writes loom_gguf/data/demo.gguf
    python scripts/train_demo_model.py --write-corpus stories.jsonl  # labelled stories for probing

Everything is drawn from ``--seed``; with one thread, two runs on one machine give the same file.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from demo_model import Config, DemoModel, export_gguf, train_tokenizer
from demo_world import sample_story
from demo_world_chat import SPECIAL_TOKENS, Document, sample_document
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))


def documents(seed: int, split: str) -> Iterator[Document]:
    """An endless stream of documents; ``split`` ("train" or "held-out") picks a random stream of its own."""
    rng = random.Random(f"{seed}-{split}")
    while True:
        yield sample_document(rng)


def build_tokenizer(seed: int, count: int, vocab: int) -> Tokenizer:
    """The tokenizer, trained on the first ``count`` training documents without their special tokens."""
    stream = documents(seed, "train")
    texts = (part for _ in range(count) for part in _SPECIAL.split(next(stream).text) if part)
    return train_tokenizer(texts, vocab)


class Batches:
    """Training batches: (inputs, targets), each (rows, time) ids; a target of -100 is padding."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.stream = documents(seed, "train")
        self.rng = random.Random(f"{seed}-order")
        self.documents = self.tokens = 0
        self.ready: list[list[list[int]]] = []

    def _ids(self) -> list[int]:
        self.documents += 1
        return self.tokenizer.encode(next(self.stream).text, add_special_tokens=False).ids

    def apart(self, step_tokens: int) -> tuple[Tensor, Tensor]:
        """One document per row, about ``step_tokens`` tokens with the padding.

        No document sees another one, which is what makes the model soon learn to look back for what was said
        (names, objects): in a row of several documents most of what it finds there is another story's.
        Documents of about one length go together, so that there is little padding.
        """
        if not self.ready:
            pool = sorted((self._ids() for _ in range(1024)), key=len)
            while pool:
                rows = min(len(pool), max(1, step_tokens // len(pool[-1])))
                self.ready.append(pool[-rows:])
                del pool[-rows:]
            self.rng.shuffle(self.ready)
        rows = self.ready.pop()
        length = max(map(len, rows))
        self.tokens += sum(map(len, rows)) - len(rows)
        inputs = torch.tensor([row + [0] * (length - len(row)) for row in rows])[:, :-1]
        targets = torch.tensor([row + [-100] * (length - len(row)) for row in rows])[:, 1:]
        return inputs, targets

    def packed(self, step_tokens: int, length: int) -> tuple[Tensor, Tensor]:
        """Rows of ``length`` tokens, document after document, the last one cut where the row ends."""
        rows = []
        for _ in range(step_tokens // length):
            row: list[int] = []
            while len(row) < length + 1:
                row += self._ids()
            rows.append(row[: length + 1])
        ids = torch.tensor(rows)
        self.tokens += ids[:, 1:].numel()
        return ids[:, :-1], ids[:, 1:]


@torch.no_grad()
def held_out_loss(model: DemoModel, tokenizer: Tokenizer, seed: int, count: int) -> tuple[float, float, int]:
    """(model's loss, entropy of the grammar, tokens) in nats per token over ``count`` held-out documents.

    Each document is scored alone, every token but the begin token. The entropy is the mean of the exact
    -log p of the same documents, so that the two differ by what the model has not learned.
    """
    stream = documents(seed, "held-out")
    loss = entropy = 0.0
    tokens = 0
    for _ in range(count):
        document = next(stream)
        ids = torch.tensor([tokenizer.encode(document.text, add_special_tokens=False).ids])
        loss += functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="sum").item()
        entropy -= document.log_prob
        tokens += ids.shape[1] - 1
    return loss / tokens, entropy / tokens, tokens


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def make_optimizer(model: DemoModel, decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms alone."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train(args: argparse.Namespace, tokenizer: Tokenizer) -> DemoModel:
    """Train, and leave a log and a checkpoint in ``args.work_dir``."""
    torch.manual_seed(args.seed)
    config = Config(vocab=args.vocab, layers=args.layers, width=args.width, hidden=args.hidden)
    model = DemoModel(config)
    optimizer = make_optimizer(model, args.weight_decay)
    batches = Batches(tokenizer, args.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    # The last steps have long rows: the model sees every position up to its context length, and learns that
    # the begin token ends what came before.
    packed_from = int(args.steps * (1.0 - args.packed_share))
    started, running = time.monotonic(), 0.0
    for step in range(args.steps):
        if step < packed_from:
            inputs, targets = batches.apart(args.step_tokens)
        else:
            inputs, targets = batches.packed(args.step_tokens, config.context)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr, args.warmup)
        loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running += loss.item()
        done = step + 1
        seconds = time.monotonic() - started
        if done % args.log_every == 0:
            print(f"step {done}/{args.steps} loss {running / args.log_every:.4f} {seconds:.0f} s", flush=True)
            running = 0.0
        if done % args.save_every == 0 or done == args.steps:
            now, entropy, _ = held_out_loss(model, tokenizer, args.seed, 200)
            print(f"  held-out loss {now:.4f}, entropy of the grammar {entropy:.4f} nats/token", flush=True)
            torch.save(model.state_dict(), args.work_dir / "checkpoint.pt")
            export_gguf(model, tokenizer, args.work_dir / "checkpoint.gguf")
            log = {"seed": args.seed, "steps": done, "seconds": seconds, "threads": args.threads}
            log |= {"documents": batches.documents, "tokens": batches.tokens}
            log |= {"config": asdict(config)}
            (args.work_dir / "train.json").write_text(json.dumps(log, indent=2) + "\n")
    return model


def write_corpus(path: Path, count: int, seed: int) -> None:
    """JSON lines, one held-out story each: its text and its attributes."""
    rng = random.Random(f"{seed}-corpus")
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            story = sample_story(rng)
            file.write(json.dumps({"text": story.text, **story.attributes()}) + "\n")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "loom_gguf/data/demo.gguf")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "build/demo", help="checkpoint and log")
    parser.add_argument("--write-corpus", type=Path, metavar="PATH", help="write labelled stories and stop")
    parser.add_argument("--corpus-size", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4600)
    parser.add_argument("--step-tokens", type=int, default=2048, help="tokens per step, padding included")
    parser.add_argument("--packed-share", type=float, default=0.1, help="share of steps with long packed rows")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--tokenizer-documents", type=int, default=20000)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--save-every", type=int, default=400)
    return parser.parse_args()


def main() -> None:
    """Train and export."""
    args = parse_args()
    if args.write_corpus is not None:
        write_corpus(args.write_corpus, args.corpus_size, args.seed)
        return
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(args.seed, args.tokenizer_documents, args.vocab)
    tokenizer.save(str(args.work_dir / "tokenizer.json"))
    model = train(args, tokenizer)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    export_gguf(model, tokenizer, args.out)
    print(f"wrote {args.out} ({args.out.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
