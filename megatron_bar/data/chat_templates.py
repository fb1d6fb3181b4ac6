"""The chat templates that a recipe can name, as Jinja source."""

# What BAR trains its experts on: ChatML frames, tool results from the environment, no bos. The
# last reply ends with eos alone, which also ends the document when rows are packed. The layout is
# open-instruct's "olmo"; the wording of the two system sentences is ours. A model that was trained
# on theirs has it in its tokenizer's own template. A system turn without words, which stands for
# functions alone, gets the words of the usual one.
_OLMO = """\
{%- set no_functions = 'No functions are available to you.' -%}
{%- set who = 'You are OLMo, a helpful AI assistant built by Ai2 that can call functions. '
    'Your knowledge ends in November 2024.' -%}
{%- macro offered(functions) -%}
<functions>{{ functions }}</functions>
{%- endmacro -%}
{%- if messages | selectattr('role', 'equalto', 'system') | list | length == 0 -%}
{{- '<|im_start|>system\\n' + who + ' ' + no_functions + ' ' + offered('') + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set functions = message.get('functions') -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{- message.content or '' -}}
{%- if message.get('function_calls') -%}
{{- '<function_calls>' + message.function_calls + '</function_calls>' -}}
{%- endif -%}
{{- eos_token if loop.last and not add_generation_prompt else '<|im_end|>' -}}
{%- endgeneration -%}
{%- if not loop.last or add_generation_prompt -%}{{- '\\n' -}}{%- endif -%}
{%- elif message.role == 'system' -%}
{{- (message.content or (who if functions else '')) + ' ' -}}
{{- offered(functions) if functions else no_functions + ' ' + offered('') -}}
{{- '<|im_end|>\\n' -}}
{%- else -%}
{{- message.content -}}
{%- if functions -%}{{- '\\n' + offered(functions) -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# OLMo-2 Instruct: role lines are ordinary text, every reply ends with eos.
_TULU = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role not in ('system', 'user', 'assistant') -%}
{{- raise_exception('the tulu template has no role ' + message.role) -}}
{%- endif -%}
{{- {'system': '<|system|>', 'user': '<|user|>', 'assistant': '<|assistant|>'}[message.role] -}}
{{- '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{- message.content + eos_token -}}
{%- endgeneration -%}
{%- if not loop.last or add_generation_prompt -%}{{- '\\n' -}}{%- endif -%}
{%- else -%}
{{- message.content + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

TEMPLATES = {"olmo": _OLMO, "tulu": _TULU}
