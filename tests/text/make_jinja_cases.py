#!/usr/bin/env python3
"""Writes jinja_cases.json: what jinja2, set up as transformers sets it up, prints for templates that
use what chat templates use. chat_template_test.cpp compares."""

import json
import pathlib

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

CHATML_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- for tool_call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' ~ tool_call.function.name ~ '", "arguments": ' ~ (tool_call.function.arguments | tojson) ~ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

MACROS = """{% macro render(schema, depth) %}
{{ '  ' * depth }}{{ schema.type }}{% if schema.required is defined %} required={{ schema.required }}{% endif %}

{% for name, child in (schema.properties or {}).items() %}
{{ '  ' * depth }}- {{ name | upper }}: {{ render(child, depth + 1) | trim }}
{% endfor %}
{% endmacro %}
{% for tool in (tools or []) if tool.type == 'function' %}
{{ loop.index }}/{{ loop.length }} {{ render(tool.function.parameters, 0) }}
{% else %}
none
{% endfor %}
{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}{{ loop.cycle('a', 'b') }}{{ m['role'][:3] }}{% if loop.index0 == 2 %}{% break %}{% endif %}{% endfor %}
"""

CASES = {
    "tools": CHATML_TOOLS,
    "macros": MACROS,
    "words": "{{ true }} {{ none }} {{ false }} {{ 1.5 }} {{ 3 // 2 }} {{ undefined_name }}|{{ tools is none }}",
    "json": "{{ messages | tojson }}\n{{ messages | tojson(indent=4) }}\n{{ (numbers or []) | tojson }}",
    "filters": "{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'a-b'.replace('-', '+') }} {{ ' x '.strip() }}| {{ 'Ab'.lower() }} {{ messages[-1].content | default('-', true) }} {{ [1,2,3] | last }} {{ 'x' in 'xyz' }}",
    "defaults": "{% if documents is not none %}documents{% endif %}{% set x = x or 5 %}{{ x }}{{ bos_token }}{% if custom is not defined %}!{% endif %}",
    "whitespace": "  {% if true %}\n  a\n  {% endif %}\n\n{#- note -#}\n  b {{- ' c' }}  \n\n",
}

VARIABLES = [
    {"messages": [{"role": "user", "content": "hi <there> & \"you\" é 漢"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "weather?"},
            {
                "role": "assistant",
                "content": "<think>hm</think>\n\nlet me see",
                "tool_calls": [
                    {"type": "function", "function": {"name": "weather", "arguments": {"z": 1, "city": "Ulm", "a": [1.0, True, None]}}}
                ],
            },
            {"role": "tool", "content": "sunny"},
            {"role": "tool", "content": "warm"},
            {"role": "user", "content": ""},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "It's <b>weather</b>",
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string"}, "at": {"type": "object", "properties": {}}},
                        "required": ["city"],
                    },
                },
            }
        ],
        "numbers": [1e20, 1e16, 1e15, 1e-5, 1.25e-5, 0.0001, -2.5e-7, 0.1, 100, -0.0, {}, [], {"a": {}}],
    },
]


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return env


def main():
    cases = []
    for name, source in CASES.items():
        template = environment().from_string(source)
        for variables in VARIABLES:
            given = {"tools": None, "documents": None, **variables}
            text = template.render(**given, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
            client = {k: v for k, v in variables.items() if k != "messages"}
            cases.append({"name": name, "template": source, "messages": variables["messages"], "variables": client, "text": text})
    out = pathlib.Path(__file__).with_name("jinja_cases.json")
    out.write_text(json.dumps({"jinja2": jinja2.__version__, "cases": cases}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
