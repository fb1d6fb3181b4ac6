"""The toy's chat format: OLMo's frames and function tags, without a default system turn."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ '<|im_start|>assistant\\n' }}
{%- generation -%}
{{ message['content'] or '' }}
{%- if message.get('function_calls') -%}
{{ '<function_calls>' + message['function_calls'] + '</function_calls>' }}
{%- endif -%}
{%- if loop.last -%}{{ eos_token }}{%- else -%}{{ '<|im_end|>\\n' }}{%- endif -%}
{%- endgeneration -%}
{%- else -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
{%- if message.get('functions') -%}
{{ '\\n<functions>' + message['functions'] + '</functions>' }}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
