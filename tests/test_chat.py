"""Chat templates: rendered as Hugging Face and llama-cpp-python render them, and harmless whoever wrote them."""

from __future__ import annotations

import contextlib
import copy
from datetime import datetime
from typing import Any

import pytest
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from loom_gguf import ChatTemplateError, Model, NoVocabularyError, PromptError
from loom_gguf.chat import chat_template, prompt_tokens, render_chat

CHATML = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

BRACKETS = """\
{% if messages[0]['role'] == 'system' %}
    {% set system = messages[0]['content'] %}
    {% set rest = messages[1:] %}
{% else %}
    {% set system = '' %}
    {% set rest = messages %}
{% endif %}
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ bos_token + '[INST] ' + (system + ' ' if loop.first and system else '') + message['content'].strip() }}
        {{- ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' ' + message['content'].strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}
"""

WITH_TOOLS = """\
{%- macro show(tool) -%}
    {{ tool.function.name }}: {{ tool | tojson }}
    {{- '\\n' + (tool.function.parameters | tojson(indent=2, sort_keys=true)) }}
{%- endmacro %}
{%- set ns = namespace(calls=0) %}
{%- if tools %}
Tools:
{% for tool in tools %}
{{ show(tool) }}
{% endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'hidden' %}{% continue %}{% endif %}
    {%- if message.role == 'end' %}{% break %}{% endif %}
    {%- if message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
            {%- set ns.calls = ns.calls + 1 %}
<call>{{ call.function | tojson }}</call>
        {%- endfor %}
    {%- elif message.content is string %}
<{{ message.role }}>{% generation %}{{ message.content | trim }}{% endgeneration %}</{{ message.role }}>
    {%- else %}
        {%- for part in message.content if part.type == 'text' %}[{{ part.text }}]{% endfor %}
    {%- endif %}
{%- endfor %}
calls={{ ns.calls }}{{ undefined_thing }}
"""

TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": " Hello, wörld! "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Bye\n"},
]
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "What's the weather?"}, {"type": "image"}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln"}}}]},
    {"role": "hidden", "content": "x"},
    {"role": "tool", "content": '{"t": "3 < 4"}'},
    {"role": "end", "content": "x"},
    {"role": "user", "content": "never seen"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "'a' & <b>"}}},
        },
    }
]


# -- rendering --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "messages", "tools"),
    [
        (CHATML, TALK, None),
        (CHATML, TALK[:1], TOOLS),
        (BRACKETS, TALK, None),
        (BRACKETS, TALK[1:], None),
        (WITH_TOOLS, TALK, None),
        (WITH_TOOLS, CALLS, TOOLS),
    ],
    ids=["chatml", "chatml-tools", "brackets-system", "brackets", "tools-none", "tools"],
)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_rendered_as_llama_cpp_python_does(template, messages, tools, add_generation_prompt):
    reference = Jinja2ChatFormatter(template, "</s>", "<s>", add_generation_prompt)
    rendered = render_chat(
        template,
        messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    assert rendered == reference(messages=messages, tools=tools).prompt
    assert rendered


def test_whitespace_of_blocks_is_trimmed_as_hugging_face_does():
    assert render_chat(CHATML, TALK[1:3], bos_token="<s>") == (
        "<s><|im_start|>user\n Hello, wörld! <|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_chat(BRACKETS, TALK, bos_token="<s>", eos_token="</s>") == (
        "        <s>[INST] Be brief & <kind>. Hello, wörld! [/INST]\n         Hi. </s>\n        <s>[INST] Bye [/INST]\n"
    )


def test_tools_and_json_are_written_plainly():
    rendered = render_chat(WITH_TOOLS, CALLS, tools=TOOLS)
    assert "weather: " in rendered
    assert "'a' & <b>" in rendered  # Jinja's own filter would escape it
    assert '<call>{"name": "weather", "arguments": {"city": "Köln"}}</call>' in rendered
    assert '<tool>{"t": "3 < 4"}</tool>' in rendered
    assert rendered.endswith("calls=1")
    assert "never seen" not in rendered


def test_strftime_now():
    before = datetime.now()
    rendered = render_chat("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}", TALK)
    assert before <= datetime.strptime(rendered, "%Y-%m-%d %H:%M:%S.%f") <= datetime.now()


# -- which template ---------------------------------------------------------------------------------------------


def test_the_template_for_tools_is_taken_when_tools_are_given():
    metadata = {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "tools"}
    assert chat_template(metadata) == "plain"
    assert chat_template(metadata, tools=True) == "tools"
    assert chat_template({"tokenizer.chat_template": "plain"}, tools=True) == "plain"
    with pytest.raises(ChatTemplateError, match="no chat template: pass one with template="):
        chat_template({"tokenizer.chat_template.tool_use": "tools"})


def test_a_file_without_a_template_says_what_to_do(llama):
    for call in (llama.chat, llama.chat_prompt):
        with pytest.raises(ChatTemplateError, match=r"template=.*generate\(\)"):
            call(TALK)
    assert llama.chat_prompt(TALK[:1], template="{{ messages[0].content }}") == TALK[0]["content"]


# -- what goes wrong --------------------------------------------------------------------------------------------


def test_a_refusal_is_told_in_the_template_s_words():
    with pytest.raises(ChatTemplateError, match=r"refuses these messages: Conversation roles must alternate user/"):
        render_chat(BRACKETS, [*TALK, {"role": "user", "content": "again"}])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for x in %}", "broken in its line 1: Expected an expression"),
        ("\n{{ 1 +", "broken in its line 2"),
        ("{% if messages %}", "broken"),
        ("{% nonsense %}", "unknown tag 'nonsense'"),
        ("{% generation %}x", "broken"),
        ("{{ messages[9].content }}", "failed: UndefinedError"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "failed: TypeError"),
        ("{{ missing | tojson }}", "failed: TypeError"),
        ("{{ range(100000000) | list }}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{% set ns = namespace() %}{% macro f(n) %}{{ f(n + 1) + f(n + 1) }}{% endmacro %}{{ f(0) }}", "without end"),
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "nested too deep"),
        ("{% if 1 %}" * 300 + "{% endif %}" * 300, "the chat template"),
        ("", "Jinja text"),
        (3, "Jinja text"),
    ],
    ids=range(16),
)
def test_broken_templates(template, reason):
    with pytest.raises(ChatTemplateError, match=reason):
        render_chat(template, TALK)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages|attr('__class__') }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['__builtins__'] }}",
        "{{ strftime_now.__code__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.environment.__class__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '{x.__class__}'.format_map({'x': messages}) }}",
        "{% include '/etc/passwd' %}",
        "{% extends '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages.append({}) }}",
        "{{ messages.clear() }}",
        "{{ messages[0].update(role='x') }}",
        "{{ messages[0].pop('role') }}",
        "{% set messages[0].role = 'x' %}",
        "{{ tools.insert(0, {}) }}",
    ],
)
def test_templates_cannot_leave_the_sandbox_or_change_what_they_are_given(template):
    """The sandbox refuses, or shows nothing."""
    messages, tools = copy.deepcopy(TALK), copy.deepcopy(TOOLS)
    with contextlib.suppress(ChatTemplateError):
        assert render_chat(template, messages, tools=tools) == ""
    assert (messages, tools) == (TALK, TOOLS)


def test_a_breach_of_the_sandbox_is_told():
    with pytest.raises(ChatTemplateError, match="what the sandbox forbids"):
        render_chat("{{ ''.__class__.__mro__ }}", TALK)


def test_templates_do_not_see_each_other():
    render_chat("{% set leaked = 1 %}{% macro also() %}{% endmacro %}x", TALK)
    assert render_chat("{{ leaked is defined }} {{ also is defined }}", TALK) == "False False"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hello", "messages is a list"),
        (None, "messages is a list"),
        ({"role": "user", "content": "x"}, "messages is a list"),
        ([], "messages is empty"),
        (["hello"], r"messages\[0\] must be"),
        ([TALK[1], None], r"messages\[1\] must be"),
        ([{"content": "x"}], r'messages\[0\] needs a "role"'),
        ([{"role": 3, "content": "x"}], r'messages\[0\] needs a "role"'),
    ],
)
def test_malformed_messages(messages, reason):
    with pytest.raises(PromptError, match=reason):
        render_chat(CHATML, messages)


@pytest.mark.parametrize("tools", ["x", {"type": "function"}, [3]])
def test_malformed_tools(tools):
    with pytest.raises(PromptError, match="tools is a list of dicts"):
        render_chat(CHATML, TALK, tools=tools)


# -- on a model -------------------------------------------------------------------------------------------------


def test_the_beginning_of_sequence_token_is_not_doubled(llama):
    vocab = llama._weights.vocab
    bos, eos = 317, 318
    assert (vocab.bos_text, vocab.eos_text) == ("<|bos|>", "<|eos|>")
    assert llama.tokenize("hi")[0] == bos
    assert vocab.tokenize("hi", add_special=False) == llama.tokenize("hi")[1:]
    plain = llama.tokenize("hi<|eos|>")
    assert plain[-1] == eos
    with_bos = llama.chat_prompt([{"role": "user", "content": "hi"}], template="{{ bos_token }}hi{{ eos_token }}")
    without = llama.chat_prompt([{"role": "user", "content": "hi"}], template="hi{{ eos_token }}")
    assert with_bos == "<|bos|>hi<|eos|>"
    assert prompt_tokens(vocab, with_bos) == prompt_tokens(vocab, without) == plain


def test_chat_generates_from_the_rendered_prompt(llama):
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    options = {"max_tokens": 12, "temperature": 1.0, "seed": 5, "logprobs": 2}
    steps = list(llama.chat(TALK, template=template, **options))
    prompt = llama.chat_prompt(TALK, template=template)
    expected = list(llama.generate(llama.tokenize(prompt.removeprefix("<|bos|>")), **options))
    assert [s.token_id for s in steps] == [s.token_id for s in expected]
    assert steps[0].position == len(llama.tokenize(prompt.removeprefix("<|bos|>"))) - 1
    with pytest.raises(TypeError, match="nonsense"):
        llama.chat(TALK, template=template, nonsense=1)


def test_the_demo_model_has_a_template():
    with Model("demo", n_ctx=256, n_threads=1) as model:
        prompt = model.chat_prompt([{"role": "user", "content": "Tell me about a fox."}])
        assert "Tell me about a fox." in prompt
        tokens = prompt_tokens(model._weights.vocab, prompt)
        bos = model.tokenize("")[0]
        assert tokens[0] == bos
        assert bos not in tokens[1:]
        steps = list(model.chat([{"role": "user", "content": "Tell me about a fox."}], max_tokens=5))
        assert steps


def test_no_vocabulary(shared):
    with pytest.raises(NoVocabularyError):
        shared("llama-no-vocab").chat(TALK, template=CHATML)
