"""Each sampling parameter acts as it says: compared with distributions computed from the raw logits in numpy."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from loom_gguf import Capture, GrammarError, Model, NoVocabularyError, SamplingError
from loom_gguf import grammar as grammars
from loom_gguf.context import Batch
from loom_gguf.sampling import Sampler, Sampling, logprobs_of

PROMPT = [104, 101, 108, 108, 199, 295, 295, 270]  # some of its tokens are likely to come again, some are not
DRAWS = 3000
OPEN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}  # no filter at all


def text_of(steps) -> str:
    return "".join(step.text for step in steps)


# -- one step's distribution ------------------------------------------------------------------------------------


class OneStep:
    """The logits after a prompt, and any number of draws from them."""

    def __init__(self, model: Model, prompt: list[int]) -> None:
        self.model, self.prompt = model, prompt
        first = next(model.generate(prompt, capture=Capture.names(["result_output"]), max_tokens=1))
        assert first.states is not None
        self.logits = first.states["result_output"].astype(np.float64)

    def draw(self, n: int, **parameters: Any) -> list[int]:
        """The tokens of seeds 0 to n - 1, from one forward pass."""
        ctx, vocab = self.model._context, self.model._weights.vocab
        sequence = ctx.open_sequence()
        batch = Batch.of_one(np.array(self.prompt), 0, sequence)
        batch.outputs[-1] = True
        tokens = []
        try:
            ctx.decode(batch)
            for seed in range(n):
                sampler = Sampler(Sampling(seed=seed, **parameters), vocab, ctx.n_ctx, self.prompt)
                tokens.append(sampler.sample(ctx.handle, len(self.prompt) - 1).token_id)
                sampler.close()
        finally:
            ctx.close_sequence(sequence)
        return tokens


@pytest.fixture(scope="module")
def one_step(shared) -> OneStep:
    return OneStep(shared("llama"), PROMPT)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max())
    return p / p.sum()


def expected(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    repeat_penalty: float = 1.0,
    repeat_last_n: int = 64,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    allowed: list[int] | None = None,
) -> np.ndarray:
    """The probabilities that these parameters mean, in llama.cpp's order; written from their descriptions."""
    logits = logits.copy()
    kept = np.ones(len(logits), bool)
    if allowed is not None:
        kept[:] = False
        kept[allowed] = True
    seen = PROMPT if repeat_last_n < 0 else PROMPT[len(PROMPT) - min(repeat_last_n, len(PROMPT)) :]
    for token, count in Counter(seen).items():
        logits[token] *= repeat_penalty if logits[token] <= 0 else 1 / repeat_penalty
        logits[token] -= presence_penalty + count * frequency_penalty

    def keep(ranked: np.ndarray) -> None:
        kept[:] = False
        kept[ranked] = True

    def p() -> np.ndarray:
        return softmax(np.where(kept, logits, -np.inf))

    if top_k:
        keep(np.argsort(-p(), kind="stable")[: min(top_k, kept.sum())])
    if typical_p < 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise = np.where(kept, -np.log(p()), np.inf)
            entropy = np.where(p() > 0, p() * surprise, 0).sum()
        ranked = np.argsort(np.abs(surprise - entropy), kind="stable")
        keep(ranked[: np.searchsorted(np.cumsum(p()[ranked]), typical_p, side="right") + 1])
    if top_p < 1:
        ranked = np.argsort(-p(), kind="stable")
        keep(ranked[: np.searchsorted(np.cumsum(p()[ranked]), top_p, side="left") + 1])
    if min_p > 0:
        keep(np.flatnonzero(kept & (p() >= min_p * p().max())))
    return softmax(np.where(kept, logits / temperature, -np.inf))


def misfit(tokens: list[int], p: np.ndarray) -> float:
    """Chi-square of the drawn tokens, in standard deviations above its mean; rare tokens count as one."""
    counts = np.bincount(tokens, minlength=len(p)).astype(np.float64)
    if counts[p == 0].any():
        return math.inf
    means = p * len(tokens)
    common = means >= 5
    counts = np.append(counts[common], counts[~common].sum())
    means = np.append(means[common], means[~common].sum())
    freedom = max(1, int((means > 0).sum()) - 1)
    chi = ((counts - means) ** 2 / np.maximum(means, 1e-9))[means > 0].sum()
    return float((chi - freedom) / math.sqrt(2 * freedom))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 7},
    {"top_p": 0.4},
    {"min_p": 0.4},
    {"typical_p": 0.4},
    {"repeat_penalty": 0.4},
    {"repeat_penalty": 0.4, "repeat_last_n": 2},
    {"presence_penalty": -4.0},
    {"presence_penalty": -4.0, "repeat_last_n": 3},
    {"frequency_penalty": -2.0},
    {"frequency_penalty": -2.0, "repeat_last_n": -1},
    {"frequency_penalty": -2.0, "repeat_last_n": 4},
    {
        "top_k": 60,
        "typical_p": 0.9,
        "top_p": 0.8,
        "min_p": 0.3,
        "temperature": 0.7,
        "presence_penalty": -2.0,
        "repeat_penalty": 1.5,
    },
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()) or "none")
def test_draws_follow_the_distribution_that_the_parameters_mean(one_step, setting):
    tokens = one_step.draw(DRAWS, **{**OPEN, **setting})
    assert misfit(tokens, expected(one_step.logits, **setting)) < 4
    if setting:  # the test can tell: what is drawn is not the plain distribution
        assert misfit(tokens, expected(one_step.logits)) > 10
        if "repeat_last_n" in setting and setting["repeat_last_n"] > 0:  # nor that of all tokens
            assert misfit(tokens, expected(one_step.logits, **{**setting, "repeat_last_n": 64})) > 10


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: ",".join(s) or "none")
def test_generate_hands_every_parameter_on(one_step, setting):
    setting = {**OPEN, **setting}
    steps = [next(one_step.model.generate(PROMPT, max_tokens=1, seed=seed, **setting)) for seed in range(12)]
    assert [step.token_id for step in steps] == one_step.draw(12, **setting)


def test_repeat_last_n_0_looks_at_nothing(one_step):
    setting = {"repeat_penalty": 5.0, "presence_penalty": 5.0, "frequency_penalty": 5.0, "repeat_last_n": 0}
    assert one_step.draw(50, **OPEN, **setting) == one_step.draw(50, **OPEN)


def test_a_seed_repeats_itself_and_none_does_not(llama):
    def ids(seed: int | None) -> list[int]:
        return [s.token_id for s in llama.generate(PROMPT, max_tokens=20, seed=seed, **OPEN)]

    assert ids(3) == ids(3) != ids(4)
    assert ids(None) != ids(None)


def test_typical_p_stands_probabilities_that_round_to_zero(one_step):
    """llama.cpp's own entropy becomes NaN there, and typical_p would act as top_p."""
    letters = range(97, 123)
    tokens = one_step.draw(DRAWS, **OPEN, typical_p=0.3, grammar="root ::= [a-z]")
    p = expected(one_step.logits, typical_p=0.3, allowed=list(letters))
    assert misfit(tokens, p) < 4
    assert misfit(tokens, expected(one_step.logits, top_p=0.3, allowed=list(letters))) > 10
    # A hundred-fold temperature before the filters is not to be had; a penalty spreads the logits as far.
    spread = {"repeat_penalty": 1e5, "typical_p": 0.3}
    assert misfit(one_step.draw(DRAWS, **OPEN, **spread), expected(one_step.logits, **spread)) < 4


# -- penalties over a generation --------------------------------------------------------------------------------


def test_penalties_act_at_temperature_0(one_step):
    plain = int(np.argmax(one_step.logits))
    assert one_step.draw(1) == [plain]
    for setting in ({"presence_penalty": 50.0}, {"frequency_penalty": -50.0}, {"repeat_penalty": 100.0}):
        wanted = int(np.argmax(expected(one_step.logits, **setting)))
        assert one_step.draw(1, **setting) == [wanted]
        assert wanted != plain


def test_tokens_do_not_come_back_within_the_window(llama):
    n = 60
    for last_n in (3, -1):
        steps = list(llama.generate(PROMPT, max_tokens=n, presence_penalty=1e4, repeat_last_n=last_n))
        ids = PROMPT + [step.token_id for step in steps]
        for at in range(len(PROMPT), len(ids)):
            window = ids[:at] if last_n < 0 else ids[at - last_n : at]
            assert ids[at] not in window
        assert (len(set(ids[len(PROMPT) :])) == len(steps)) == (last_n < 0)


# -- log-probabilities ------------------------------------------------------------------------------------------


def test_logprobs_are_the_log_softmax_of_the_raw_logits(llama):
    filters = {"temperature": 0.5, "top_k": 5, "presence_penalty": 1.0, "grammar": "root ::= [a-z]+"}
    steps = list(
        llama.generate(PROMPT, capture=Capture.names(["result_output"]), max_tokens=6, logprobs=20, seed=1, **filters)
    )
    for step in steps:
        logits = step.states["result_output"].astype(np.float64)
        reference = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert step.logprob == pytest.approx(reference[step.token_id], abs=1e-12)
        best = np.argsort(-reference, kind="stable")[:20]
        assert [i for i, _ in step.top_logprobs] == best.tolist()
        assert [value for _, value in step.top_logprobs] == pytest.approx(reference[best], abs=1e-12)
        assert 0 < sum(math.exp(value) for _, value in step.top_logprobs) <= 1


def test_logprobs_0_tells_only_the_chosen_token_and_none_nothing(llama):
    (step,) = llama.generate(PROMPT, max_tokens=1, logprobs=0)
    assert step.logprob < 0
    assert step.top_logprobs == ()
    (step,) = llama.generate(PROMPT, max_tokens=1)
    assert (step.logprob, step.top_logprobs) == (None, ())


def test_logprobs_stand_large_logits_and_minus_infinity():
    values = logprobs_of(np.array([3e38, -3e38, -np.inf, 3e38], np.float32), [0, 1, 2, 3])
    assert values == pytest.approx([-math.log(2), -6e38, -math.inf, -math.log(2)], rel=1e-6)


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "range_"),
    [
        ("temperature", [-0.1, math.nan, math.inf, "1", True, None], "at least 0|finite"),
        ("top_k", [-1, 1.5, True, None], ">= 0"),
        ("top_p", [-0.1, 1.1, math.nan], "at least 0 and at most 1"),
        ("min_p", [-0.1, 1.1], "at least 0 and at most 1"),
        ("typical_p", [-0.1, 1.1, math.nan, None], "at least 0 and at most 1"),
        ("repeat_penalty", [0, -1.0, math.nan, math.inf, "1"], "at least 1e-06"),
        ("presence_penalty", [math.nan, math.inf, -math.inf, 1e39, None], "at least -1e"),
        ("frequency_penalty", [math.nan, math.inf, "0"], "at least -1e"),
        ("repeat_last_n", [-2, 1.0, True, None], ">= -1"),
        ("seed", [-1, 2**32 - 1, 1.0, True], "from 0 to"),
        ("logprobs", [-1, 21, 1.0, True], "from 0 to 20"),
        ("max_tokens", [0, -1, 1.0, True], "at least 1"),
        ("stop", [[""], [1]], "non-empty"),
    ],
)
def test_bad_values_are_refused_at_the_call_with_their_name_and_range(llama, name, values, range_):
    for value in values:
        with pytest.raises(SamplingError, match=range_) as refused:
            llama.generate(PROMPT, **{name: value})
        assert name in str(refused.value)


@pytest.mark.parametrize(
    ("gbnf", "reason"),
    [
        ("", "grammar must be GBNF"),
        ("  \n", "grammar must be GBNF"),
        (b"root", "grammar must be GBNF"),
        ('root ::= "a', "unexpected end of input"),
        ("root ::= foo", "Undefined rule identifier 'foo'"),
        ('foo ::= "a"', "root"),
        ('root ::= root "a"', "refuses"),
        ("root ::= [a-", "unexpected end of input"),
        ("root ::= (", "refuses"),
        ('root := "a"', "expecting ::= at"),
        ('root ::= "a"{99999}', "repetitions"),
        ('root ::= "a"{99999999999999999999999}', "refuses"),
        ('root ::= "a\0"', "NUL"),
        ('root ::= "\ud800"', "Unicode"),
        ("root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000, "nested more than 256"),
        ("\n".join(f"a{i} ::= a{i + 1}" for i in range(100_000)), "more than 10,000 rules"),
    ],
    ids=range(16),
)
def test_grammars_that_cannot_be_read(llama, capfd, gbnf, reason):
    with pytest.raises(GrammarError, match=re.escape(reason)):
        llama.generate("x", grammar=gbnf)
    assert capfd.readouterr().err == ""  # llama.cpp's parser would write there


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "must be a JSON object"),
        ("3", "must be a JSON object"),
        ({"type": {1, 2}}, "dict or JSON text"),
        ({"type": "nonsense"}, "nonsense"),
        ({"$ref": "https://example.org/schema.json"}, "may only point into the schema itself"),
        ({"properties": {"a": {"$ref": "http://localhost/"}}}, "may only point into the schema itself"),
        ({"$ref": "#/$defs/missing"}, "points to nothing: '#/$defs/missing'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refuses"),
        ({"type": "array", "items": 3}, "a schema is an object"),
        ({"type": "string", "pattern": "abc"}, "Pattern must start"),
        ({"type": "string", "maxLength": 1_000_000}, "more than 2,000 times"),
        ({"items": {"type": "array", "items": {"const": 1}, "minItems": 2001}}, "more than 2,000 times"),
        ({"type": "string", "pattern": "^[a-z]{1,1000000}$"}, "more than 2,000 times"),
    ],
    ids=range(16),
)
def test_schemas_that_cannot_be_followed(llama, schema, reason):
    with pytest.raises(GrammarError, match=re.escape(reason)):
        llama.generate("x", json_schema=schema)


def test_a_schema_nested_too_deep_is_refused(llama):
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(600):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError):
        llama.generate("x", json_schema=schema)


def test_grammar_and_schema_exclude_each_other_and_need_a_vocabulary(llama, shared):
    with pytest.raises(SamplingError, match="not both"):
        llama.generate("x", grammar='root ::= "a"', json_schema={})
    for constraint in ({"grammar": 'root ::= "a"'}, {"json_schema": {}}):
        with pytest.raises(NoVocabularyError, match="no tokenizer"):
            shared("llama-no-vocab").generate([1, 2], **constraint)


def test_the_parser_is_heard_without_hiding_what_others_write(capfd):
    gbnf = b"root ::= foo"

    def call() -> None:
        os.write(2, b"before\nparse: error parsing grammar: reason\n\n" + gbnf + b"\nafter\n")

    assert grammars._catching_stderr(gbnf, call) == (None, "reason")
    assert grammars._catching_stderr(gbnf, lambda: os.write(2, b"only others\n")) == (12, "")
    assert capfd.readouterr().err == "before\nafter\nonly others\n"


# -- grammars ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, OPEN, {"temperature": 1.0, "top_k": 1}, {**OPEN, "typical_p": 0.5}, {**OPEN, "repeat_penalty": 1.3}],
    ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()) or "greedy",
)
@pytest.mark.parametrize(
    ("gbnf", "form"),
    [
        ('root ::= "yes" | "no"', "yes|no"),
        ('root ::= [0-9]{3} "-" word{2}\nword ::= [a-c]+ " "', r"\d{3}-[abc]+ [abc]+ "),
        ('root ::= "(" root? ")"', r"\(+\)+"),
        ('root ::= "ä" | "€" | "𝄞"', "ä|€|𝄞|\ufffd+"),  # the random model may write them overlong
    ],
    ids=["words", "digits", "nested", "unicode"],
)
def test_a_grammar_is_followed_to_its_end(llama, gbnf, form, settings):
    """With every filter behind it: the grammar goes first, so they never leave only tokens that it forbids."""
    for seed in range(4):
        steps = list(llama.generate("the ", grammar=gbnf, max_tokens=60, seed=seed, **settings))
        text = text_of(steps)
        if steps[-1].finish_reason == "stop":
            assert re.fullmatch(form, text)
            assert llama._weights.vocab.ends_generation(steps[-1].token_id)
        else:
            assert len(steps) == 60


def test_a_complete_grammar_leaves_only_the_end(llama):
    steps = list(llama.generate("a", grammar='root ::= "xyz"', **OPEN, seed=None))
    assert text_of(steps) == "xyz"
    assert steps[-1].finish_reason == "stop"


def test_draws_under_a_grammar_are_those_of_the_allowed_tokens(one_step):
    tokens = one_step.draw(DRAWS, **OPEN, grammar="root ::= [a-m]", min_p=0.2, repeat_penalty=1.5)
    p = expected(one_step.logits, allowed=list(range(97, 110)), min_p=0.2, repeat_penalty=1.5)
    assert misfit(tokens, p) < 4


def test_a_grammar_that_no_token_can_follow_ends_in_words(llama):
    """llama.cpp would abort the process."""
    with pytest.raises(GrammarError, match="no token of this model's vocabulary"):
        list(llama.generate("x", grammar=r'root ::= "a" "\x00"'))
    assert text_of(llama.generate("x", grammar='root ::= "ab"')) == "ab"  # and nothing is left behind


def test_several_grammars_at_once(llama):
    texts = ["abc", "xyz", "123"]
    running = [llama.generate("x", grammar=f'root ::= "{text}"') for text in texts]
    out = ["", "", ""]
    for _ in range(3):
        for at, steps in enumerate(running):
            out[at] += next(steps).text
    assert out == texts
    for steps in running:
        steps.close()


# -- JSON schemas -----------------------------------------------------------------------------------------------


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def readable(text: str) -> str:
    """llama.cpp's grammar takes overlong UTF-8 for a character; a text shows each of its bytes as U+FFFD."""
    return re.sub("\ufffd+", "\ufffd", text)


ODD = ['quo"te', "back\\slash", "new\nline", "tab\t", "é€𝄞", "", None, 3, -1.5, True]
NODE = {
    "type": "object",
    "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["v", "next"],
}


def is_node(value: Any) -> bool:
    return value is None or (value.keys() == {"v", "next"} and isinstance(value["v"], bool) and is_node(value["next"]))


SCHEMAS: list[tuple[Any, Any]] = [
    ({}, lambda v: isinstance(v, dict)),
    ("json", lambda v: isinstance(v, dict)),
    ("{}", lambda v: isinstance(v, dict)),
    ({"title": "anything"}, lambda v: isinstance(v, dict)),
    ({"type": "integer"}, is_int),
    ({"type": "number"}, lambda v: is_int(v) or isinstance(v, float)),
    ({"type": "string", "maxLength": 12}, lambda v: isinstance(v, str) and len(readable(v)) <= 12),
    ({"type": "string", "pattern": "^a.{3}[0-9]+$"}, lambda v: re.fullmatch("a.{1,3}[0-9]+", readable(v), re.DOTALL)),
    ({"type": "string", "format": "date"}, lambda v: re.fullmatch(r"\d{4}-\d\d-\d\d", v)),
    ({"enum": ODD}, lambda v: v in ODD),
    ({"type": ["string", "null"], "enum": ["a", None]}, lambda v: v in ("a", None)),
    ({"type": ["array", "null"], "items": {"const": 1}}, lambda v: v is None or all(i == 1 for i in v)),
    ({"type": "array", "items": {}, "maxItems": 2}, lambda v: isinstance(v, list) and len(v) <= 2),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}, lambda v: len(v) == 3),
    (
        {"properties": {key: {"const": key} for key in ODD[:6]}, "required": ODD[:6]},  # type: ignore[misc]
        lambda v: v == {key: key for key in ODD[:6]},
    ),
    (
        '{"type": "object", "properties": {"n": {"type": "integer"}, "o": {"type": "null"}}, "required": ["n"]}',
        lambda v: is_int(v["n"]) and v.keys() <= {"n", "o"} and v.get("o") is None,
    ),
    ({"type": "object", "additionalProperties": {"type": "boolean"}}, lambda v: set(v.values()) <= {True, False}),
    ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, is_node),
    (
        {"properties": {"v": {"type": "null"}, "more": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}}},
        lambda v: v.keys() <= {"v", "more"} and all(w.keys() <= {"v", "more"} for w in v.get("more", [])),
    ),
    ({"allOf": [{"$ref": "#/$defs/a~1b/0"}], "$defs": {"a/b": [{"properties": {"x": {"const": 1}}}]}}, {"x": 1}.__eq__),
    # The last part of a reference is also the name of another rule, and names of built-in rules are taken.
    (
        {
            "properties": {
                "a": {"properties": {"deep": {"type": "null"}}, "required": ["deep"]},
                "b": {"$ref": "#/$defs/a"},
                "c": {"$ref": "#/$defs/string"},
                "char": {"type": "boolean"},
                "space": {"enum": [1]},
            },
            "required": ["a", "b", "c", "char", "space"],
            "$defs": {"a": {"type": "boolean"}, "string": {"type": "integer"}},
        },
        lambda v: v["a"] == {"deep": None} and isinstance(v["b"], bool) and is_int(v["c"]) and v["space"] == 1,
    ),
]


@pytest.mark.parametrize(("schema", "matches"), SCHEMAS, ids=range(len(SCHEMAS)))
def test_generated_json_matches_its_schema(llama, schema, matches):
    """A random model writes what no trained one would: control characters, broken UTF-8, quotation marks."""
    complete = 0
    for seed in range(6):
        steps = list(llama.generate("the", json_schema=schema, max_tokens=220, seed=seed, **OPEN))
        if steps[-1].finish_reason == "stop":
            complete += 1
            assert matches(json.loads(text_of(steps)))
    assert complete


def test_the_demo_model_answers_in_a_schema():
    """It would tell a story; its tokens are whole words, which the grammar lets through in parts only."""
    schema = {
        "properties": {"who": {"enum": ["fox", "owl"]}, "n": {"type": "integer"}, "old": {"type": "boolean"}},
        "required": ["who", "n", "old"],
    }
    with Model("demo", n_ctx=256, n_threads=1) as model:
        for seed, temperature in ((0, 0.0), (0, 1.0), (1, 1.0)):
            steps = list(
                model.generate("Once upon a time", json_schema=schema, seed=seed, temperature=temperature, top_p=1.0)
            )
            assert steps[-1].finish_reason == "stop"
            value = json.loads(text_of(steps))
            assert value["who"] in ("fox", "owl")
            assert is_int(value["n"])
            assert isinstance(value["old"], bool)


def test_strings_hold_no_raw_control_characters(llama):
    """llama-cpp-python's own rule lets them through, and json.loads then refuses the text."""
    schema = {"type": "string", "minLength": 60, "maxLength": 60}
    for seed in range(12):
        steps = list(llama.generate("x", json_schema=schema, max_tokens=400, seed=seed, **OPEN))
        assert steps[-1].finish_reason == "stop"
        json.loads(text_of(steps))


def test_a_schema_given_as_a_dict_is_left_as_it_was(llama):
    schema = {"$ref": "#/$defs/node", "$defs": {"node": NODE}}
    before = json.dumps(schema)
    llama.generate("x", json_schema=schema)
    assert json.dumps(schema) == before
