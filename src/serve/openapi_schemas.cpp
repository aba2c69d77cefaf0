// What the description of the API says beyond the tables, as JSON.
#include "serve/openapi.h"

namespace lorry {

namespace {

constexpr std::string_view kSchemas = R"json({
"LoraxError": {"type": "object", "required": ["error", "error_type"], "properties": {
  "error": {"type": "string"}, "error_type": {"type": "string"}}},
"OpenAiError": {"type": "object", "required": ["error"], "properties": {"error": {
  "type": "object", "required": ["message", "type", "param", "code"], "properties": {
    "message": {"type": "string"}, "type": {"type": "string"},
    "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}}}},
"Token": {"type": "object", "required": ["id", "text", "logprob", "special", "skipped"],
  "properties": {"id": {"type": "integer"}, "text": {"type": "string"},
    "logprob": {"type": ["number", "null"]}, "special": {"type": "boolean"},
    "skipped": {"type": "boolean"}, "alternative_tokens": {"type": "array", "items": {
      "type": "object", "required": ["id", "text", "logprob"]}}}},
"Sequence": {"type": "object",
  "required": ["finish_reason", "prompt_tokens", "generated_tokens", "skipped_tokens", "seed",
    "prefill", "tokens"],
  "properties": {"finish_reason": {"enum": ["length", "eos_token", "stop_sequence"]},
    "prompt_tokens": {"type": "integer"}, "generated_tokens": {"type": "integer"},
    "skipped_tokens": {"type": "integer"}, "seed": {"type": ["integer", "null"]},
    "prefill": {"type": "array", "items": {"type": "object", "required": ["id", "text", "logprob"]}},
    "tokens": {"type": "array", "items": {"$ref": "#/components/schemas/Token"}},
    "best_of_sequences": {"type": "array", "items": {"$ref": "#/components/schemas/Sequence"}}}},
"GenerateResponse": {"type": "object", "required": ["generated_text"], "properties": {
  "generated_text": {"type": "string"},
  "details": {"$ref": "#/components/schemas/Sequence"}}},
"GenerateResponses": {"type": "array", "minItems": 1, "maxItems": 1,
  "items": {"$ref": "#/components/schemas/GenerateResponse"}},
"Usage": {"type": "object", "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
  "properties": {"prompt_tokens": {"type": "integer"}, "completion_tokens": {"type": "integer"},
    "total_tokens": {"type": "integer"}}},
"Completion": {"type": "object",
  "required": ["id", "object", "created", "model", "choices", "usage"], "properties": {
    "id": {"type": "string"}, "object": {"const": "text_completion"},
    "created": {"type": "integer"}, "model": {"type": "string"},
    "choices": {"type": "array", "minItems": 1, "items": {"type": "object",
      "required": ["index", "text", "logprobs", "finish_reason"], "properties": {
        "index": {"type": "integer"}, "text": {"type": "string"},
        "logprobs": {"type": ["object", "null"]},
        "finish_reason": {"enum": ["stop", "length", "tool_calls", "abort"]}}}},
    "usage": {"$ref": "#/components/schemas/Usage"}}},
"ChatCompletion": {"type": "object",
  "required": ["id", "object", "created", "model", "choices", "usage"], "properties": {
    "id": {"type": "string"}, "object": {"const": "chat.completion"},
    "created": {"type": "integer"}, "model": {"type": "string"},
    "choices": {"type": "array", "minItems": 1, "items": {"type": "object",
      "required": ["index", "message", "logprobs", "finish_reason"], "properties": {
        "index": {"type": "integer"}, "message": {"type": "object",
          "required": ["role", "content"], "properties": {"role": {"const": "assistant"},
            "content": {"type": ["string", "null"]}}},
        "logprobs": {"type": ["object", "null"]},
        "finish_reason": {"enum": ["stop", "length", "tool_calls", "abort"]}}}},
    "usage": {"$ref": "#/components/schemas/Usage"}}},
"Response": {"type": "object", "required": ["id", "object", "created_at", "model", "status", "error",
    "incomplete_details", "output", "parallel_tool_calls", "tool_choice", "tools", "usage"],
  "properties": {"id": {"type": "string"}, "object": {"const": "response"},
    "created_at": {"type": "integer"}, "model": {"type": "string"},
    "status": {"enum": ["completed", "incomplete", "cancelled"]},
    "output": {"type": "array", "minItems": 1, "items": {"type": "object",
      "required": ["id", "type", "status"], "properties": {"id": {"type": "string"},
        "type": {"enum": ["message", "function_call"]},
        "status": {"enum": ["completed", "incomplete"]}}}},
    "usage": {"type": "object", "required": ["input_tokens", "output_tokens", "total_tokens"]}}},
"Model": {"type": "object", "required": ["id", "object", "created", "owned_by", "parent"],
  "properties": {"id": {"type": "string"}, "object": {"const": "model"},
    "created": {"type": "integer"}, "owned_by": {"type": "string"}, "root": {"type": "string"},
    "parent": {"type": ["string", "null"]}, "max_model_len": {"type": "integer"}}},
"Models": {"type": "object", "required": ["object", "data"], "properties": {
  "object": {"const": "list"},
  "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}}}},
"Adapters": {"type": "object", "required": ["object", "data", "memory"], "properties": {
  "object": {"const": "list"}, "memory": {"type": "object"},
  "data": {"type": "array", "items": {"type": "object",
    "required": ["id", "object", "source", "state", "requests", "hits", "bytes", "rank", "sites"],
    "properties": {"id": {"type": "string"}, "object": {"const": "adapter"},
      "source": {"type": "string"}, "state": {"type": "string"}, "error": {
        "type": ["string", "null"]}}}}}},
"LoadAdapter": {"type": "object", "required": ["lora_name", "lora_path"], "properties": {
  "lora_name": {"type": "string", "minLength": 1}, "lora_path": {"type": "string", "minLength": 1},
  "load_inplace": {"type": ["boolean", "null"], "default": false}}},
"UnloadAdapter": {"type": "object", "required": ["lora_name"], "properties": {
  "lora_name": {"type": "string", "minLength": 1}}},
"Tokenize": {"type": "object", "required": ["inputs"], "properties": {
  "inputs": {"type": "string"}, "add_special_tokens": {"type": ["boolean", "null"],
    "default": true}}},
"Tokens": {"type": "array", "items": {"type": "object", "required": ["id", "text", "start", "stop"],
  "properties": {"id": {"type": "integer"}, "text": {"type": "string"},
    "start": {"type": "integer"}, "stop": {"type": "integer"}}}},
"Detokenize": {"type": "object", "required": ["tokens"], "properties": {
  "tokens": {"type": "array", "items": {"$ref": "#/components/schemas/TokenId"}}}},
"Detokenized": {"type": "object", "required": ["prompt"], "properties": {
  "prompt": {"type": "string"}}},
"Info": {"type": "object", "required": ["model_id", "max_input_length", "max_total_tokens",
  "max_concurrent_requests", "max_best_of", "max_stop_sequences", "version"]},
"Version": {"type": "object", "required": ["version"], "properties": {
  "version": {"type": "string"}}},
"Document": {"type": "object", "required": ["openapi", "info", "paths"]},

"field:stop": {"oneOf": [{"type": "null"}, {"type": "string", "minLength": 1},
  {"type": "array", "items": {"type": "string", "minLength": 1}}]},
"field:stop_token_ids": {"type": ["array", "null"], "maxItems": 128,
  "items": {"$ref": "#/components/schemas/TokenId"}},
"field:logit_bias": {"type": ["object", "null"], "maxProperties": 1024,
  "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
"field:merged_adapters": {"type": ["object", "null"], "required": ["ids"], "properties": {
  "ids": {"type": "array", "minItems": 1, "items": {"type": "string"}},
  "weights": {"type": ["array", "null"], "items": {"type": "number"}},
  "merge_strategy": {"type": ["string", "null"]}, "density": {"type": ["number", "null"]},
  "majority_sign_method": {"type": ["string", "null"]}, "seed": {"type": ["integer", "null"]}}},
"field:adapters": {"type": ["array", "null"], "minItems": 1, "items": {"type": "object",
  "required": ["id"], "properties": {"id": {"type": "string"},
    "weight": {"type": ["number", "null"]}}}},
"field:stream_options": {"type": ["object", "null"], "properties": {
  "include_usage": {"type": ["boolean", "null"]},
  "continuous_usage_stats": {"type": ["boolean", "null"]}}},
"field:response_format": {"type": ["object", "null"], "required": ["type"], "properties": {
  "type": {"type": "string"}}},
"field:prompt": {"oneOf": [{"type": "string", "minLength": 1},
  {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
  {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/TokenId"}},
  {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1,
    "items": {"$ref": "#/components/schemas/TokenId"}}}]},
"field:input": {"oneOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {
  "type": "object", "properties": {
    "type": {"enum": ["message", "function_call", "function_call_output"]},
    "role": {"enum": ["user", "assistant", "system", "developer"]}}}}]},
"field:instructions": {"type": ["string", "null"]},
"field:text": {"type": ["object", "null"], "properties": {"format": {"type": ["object", "null"],
  "required": ["type"], "properties": {"type": {"type": "string"}}}}},
"field:include": {"type": ["array", "null"], "items": {"type": "string"}},
"field:messages": {"type": "array", "minItems": 1, "items": {"type": "object",
  "required": ["role"], "properties": {
    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
    "content": {"oneOf": [{"type": "null"}, {"type": "string"},
      {"type": "array", "items": {"type": "object", "required": ["type"],
        "properties": {"type": {"type": "string"}, "text": {"type": "string"}}}}]},
    "name": {"type": ["string", "null"]}}}}
})json";

// request: a schema; answer: a schema, or a type of content; stream: it may be events instead.
constexpr std::string_view kRoutes = R"json({
"GET /": {"says": "The web page for those who accept text/html; else 200 with what this is, or 503, as /health",
  "answer": "text/plain", "errors": [503]},
"POST /": {"says": "LoRAX's compatible form: the answer in a list, or events with `stream`",
  "request": "CompatRequest", "answer": "GenerateResponses", "stream": true, "generates": true},
"POST /invocations": {"says": "As `POST /`, for SageMaker", "request": "CompatRequest",
  "answer": "GenerateResponses", "stream": true, "generates": true},
"POST /generate": {"says": "LoRAX: the whole answer", "request": "GenerateRequest",
  "answer": "GenerateResponse", "generates": true},
"POST /generate_stream": {"says": "LoRAX: events, one per token; the last has the text",
  "request": "GenerateRequest", "stream": true, "generates": true},
"POST /v1/completions": {"says": "OpenAI: completions", "request": "CompletionRequest",
  "answer": "Completion", "stream": true, "generates": true},
"POST /v1/chat/completions": {"says": "OpenAI: chat", "request": "ChatRequest",
  "answer": "ChatCompletion", "stream": true, "generates": true},
"POST /v1/responses": {"says": "OpenAI: responses, of text and calls of functions; nothing is kept",
  "request": "ResponseRequest", "answer": "Response", "stream": true, "generates": true},
"GET /v1/models": {"says": "The base model and the adapters that are known by name",
  "answer": "Models", "errors": [429]},
"GET /v1/models/": {"says": "One of them", "answer": "Model", "errors": [404, 429]},
"GET /v1/adapters": {"says": "Adapters: where they are, what they hold, how often they were used",
  "answer": "Adapters", "errors": [429]},
"POST /v1/load_lora_adapter": {"says": "Loads a folder below --adapter-root under a name",
  "request": "LoadAdapter", "answer": "text/plain", "errors": [400, 404, 429]},
"POST /v1/unload_lora_adapter": {"says": "Forgets a name; requests in work finish",
  "request": "UnloadAdapter", "answer": "text/plain", "errors": [400, 404, 429]},
"POST /tokenize": {"says": "The tokens of a text, and their places in it", "request": "Tokenize",
  "answer": "Tokens", "errors": [400, 422, 429]},
"POST /detokenize": {"says": "The text of tokens, as vLLM answers", "request": "Detokenize",
  "answer": "Detokenized", "errors": [400, 422, 429]},
"POST /embed": {"says": "Refused: a causal language model", "errors": [424]},
"POST /v1/embeddings": {"says": "Refused: a causal language model", "errors": [400]},
"POST /classify": {"says": "Refused: a causal language model", "errors": [424]},
"POST /classify_batch": {"says": "Refused: a causal language model", "errors": [424]},
"GET /startup": {"says": "200 once a token has been computed", "answer": "", "errors": [503],
  "open": true},
"GET /health": {"says": "200, or 503 while the model is loaded, the server drains or a step hangs",
  "answer": "", "errors": [503], "open": true},
"GET /ping": {"says": "As /health", "answer": "", "errors": [503], "open": true},
"GET /info": {"says": "Model and limits, with LoRAX's names", "answer": "Info", "errors": []},
"GET /version": {"says": "The version of Lorry", "answer": "Version", "errors": []},
"GET /metrics": {"says": "Prometheus' text format", "answer": "text/plain", "errors": []},
"GET /docs": {"says": "This description as a page", "answer": "text/html", "errors": []},
"GET /api-doc/openapi.json": {"says": "This description", "answer": "Document", "errors": []}
})json";

constexpr std::string_view kNotes = R"json({
"temperature": {"default": 1.0, "says": "0 is greedy"},
"repetition_penalty": {"default": 1.0}, "frequency_penalty": {"default": 0.0},
"presence_penalty": {"default": 0.0}, "top_k": {"says": "default: all tokens"},
"top_p": {"default": 1.0}, "typical_p": {"says": "default: all tokens"}, "min_p": {"default": 0.0},
"do_sample": {"default": false, "says": "top_k, top_p, typical_p and a temperature turn it on too"},
"seed": {"says": "default: random"},
"watermark": {"default": false, "says": "prefer the green tokens of Kirchenbauer et al., with the server's --watermark-gamma and --watermark-delta"},
"max_new_tokens": {"says": "default: what fits; with the prompt at most max_total_tokens"},
"max_tokens": {"says": "default: chat, what fits; completions, 16"},
"max_completion_tokens": {"says": "another name of max_tokens"},
"max_output_tokens": {"says": "default: what fits"},
"input": {"says": "what the user says, or the conversation: messages, calls and their results"},
"instructions": {"says": "a system message before the input"},
"text": {"says": "format: what the answer must look like"},
"include": {"says": "message.output_text.logprobs"},
"ignore_eos_token": {"default": false}, "ignore_eos": {"default": false},
"stop": {"says": "texts that end the answer, at most max_stop_sequences"},
"best_of": {"default": 1, "says": "LoRAX: the most probable of so many, at most max_best_of; completions: at least n"},
"n": {"default": 1}, "model": {"says": "the served name or an adapter; empty: the base model"},
"adapter_id": {"says": "default: the server's --adapter-id, or the base model"},
"adapter_source": {"says": "local, hub or s3; default: the server's"},
"api_token": {"says": "the hub's token of the caller; never logged"},
"merged_adapters": {"says": "adapters to be merged for this request"},
"adapter_parameters": {"says": "another name of merged_adapters"},
"adapters": {"says": "adapters with weights, as a weighted sum"},
"cache_salt": {"says": "requests with different salts share no cached prefix"},
"user": {"says": "ignored"}, "truncate": {"says": "keeps the last tokens of the prompt"},
"apply_chat_template": {"default": false}, "return_full_text": {"default": false},
"details": {"default": false}, "decoder_input_details": {"default": false},
"return_k_alternatives": {"says": "alternatives of each token; default: none"}, "stream": {"default": false},
"logprobs": {"says": "chat: true or false; completions: how many alternatives"},
"top_logprobs": {"says": "alternatives of each token"}, "echo": {"default": false},
"stop_token_ids": {"says": "tokens that end the answer"},
"logit_bias": {"says": "from token id to what is added to its logit"},
"stream_options": {"says": "include_usage, continuous_usage_stats"},
"response_format": {"says": "what the answer must look like"},
"messages": {"says": "the conversation"}, "prompt": {"says": "text or token ids, one or several"},
"parallel_tool_calls": {"default": true}
})json";

}  // namespace

std::string_view openapi_schemas() { return kSchemas; }
std::string_view openapi_routes() { return kRoutes; }
std::string_view openapi_notes() { return kNotes; }

}  // namespace lorry
