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


class Packer:
    """Rows of token ids: whole documents one after the other, the last one cut where the row ends."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.stream = documents(seed, "train")
        self.used = 0

    def batch(self, rows: int, length: int) -> Tensor:
        """(rows, length) ids; every row starts at the start of a document, as a prompt does."""
        out = []
        for _ in range(rows):
            row: list[int] = []
            while len(row) < length:
                row += self.tokenizer.encode(next(self.stream).text, add_special_tokens=False).ids
                self.used += 1
            out.append(row[:length])
        return torch.tensor(out)


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
    """Train, and leave a log and a checkpoint in ``args.work_dir``; --resume goes on from the checkpoint."""
    torch.manual_seed(args.seed)
    config = Config(vocab=args.vocab, layers=args.layers, width=args.width, hidden=args.hidden)
    model = DemoModel(config)
    optimizer = make_optimizer(model, args.weight_decay)
    packer = Packer(tokenizer, args.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    # The last rows are twice as long: positions beyond the first rows' length are seen too, at little cost.
    long_from = int(args.steps * (1.0 - args.long_share))
    started, seconds_before, first, running = time.monotonic(), 0.0, 0, 0.0
    checkpoint = args.work_dir / "checkpoint.pt"
    if args.resume:
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds_before = state["step"], state["seconds"]
        while packer.used < state["documents"]:
            next(packer.stream)
            packer.used += 1
    for step in range(first, args.steps):
        long = 2 if step >= long_from else 1
        ids = packer.batch(args.batch // long, args.length * long + 1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr, args.warmup)
        logits = model(ids[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running += loss.item()
        done = step + 1
        seconds = seconds_before + time.monotonic() - started
        if done % args.log_every == 0:
            print(f"step {done}/{args.steps} loss {running / args.log_every:.4f} {seconds:.0f} s", flush=True)
            running = 0.0
        if done % args.save_every == 0 or done == args.steps:
            now, entropy, _ = held_out_loss(model, tokenizer, args.seed, 200)
            print(f"  held-out loss {now:.4f}, entropy of the grammar {entropy:.4f} nats/token", flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            torch.save(state | {"seconds": seconds, "documents": packer.used}, checkpoint)
            export_gguf(model, tokenizer, args.work_dir / "checkpoint.gguf")
            log = {"seed": args.seed, "steps": done, "seconds": seconds, "threads": args.threads}
            log |= {"documents": packer.used, "tokens": done * args.batch * args.length}
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
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=12, help="rows per step")
    parser.add_argument("--length", type=int, default=256, help="tokens per row")
    parser.add_argument(
        "--long-share", type=float, default=0.15, help="share of steps with rows twice as long"
    )
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--tokenizer-documents", type=int, default=20000)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work-dir")
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
