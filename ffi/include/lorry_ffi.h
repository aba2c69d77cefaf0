// The C interface of the Rust library in ffi/: HF tokenizers, minijinja chat templates, llguidance.
//
// Every function takes pointer + length, reads nothing past a length, and catches panics. Functions
// that can fail return a code and, when it is not LORRY_FFI_OK, set *error to a NUL-terminated
// message that the caller frees with lorry_ffi_free. Texts are UTF-8 and are checked.
// Output arrays are the caller's, freed with lorry_ffi_free; on failure outputs are not written.
// Tokenizer and template objects may be used by many threads at once, a constraint by one at a time.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  LORRY_FFI_OK = 0,
  LORRY_FFI_INVALID = 1,  // the input is wrong; the message says how
  LORRY_FFI_LIMIT = 2,    // a limit on time, memory or output was reached
  LORRY_FFI_PANIC = 3,    // a bug in the library, caught
};

typedef struct LorryTokenizer LorryTokenizer;
typedef struct LorryTemplate LorryTemplate;
typedef struct LorryConstraint LorryConstraint;

// Frees any array or message that a function here returned. NULL is fine.
void lorry_ffi_free(void* memory);

// ---- tokenizer -------------------------------------------------------------------------------

// `json` is the content of a tokenizer.json. Its truncation and padding settings are dropped.
int32_t lorry_tokenizer_load(const uint8_t* json, size_t json_len, LorryTokenizer** out,
                             char** error);
void lorry_tokenizer_free(LorryTokenizer* tokenizer);

// One more than the largest token id, added tokens included. Ids below it may be holes.
size_t lorry_tokenizer_vocab_size(const LorryTokenizer* tokenizer);

enum {
  LORRY_TOKEN_KNOWN = 1,     // 0: the id is a hole or out of range
  LORRY_TOKEN_SPECIAL = 2,   // marked special in tokenizer.json
  LORRY_TOKEN_BYTE_RUN = 4,  // a byte-fallback token <0xXX>: decodes only together with its run
};
typedef struct LorryToken {
  uint32_t flags;
  const char* piece;  // as in the vocabulary ("▁the", "Ġthe"); owned by the tokenizer
  size_t piece_len;
  const uint8_t* bytes;  // what it stands for (" the"), perhaps part of a character; owned likewise
  size_t bytes_len;
} LorryToken;
void lorry_tokenizer_token(const LorryTokenizer* tokenizer, uint32_t id, LorryToken* out);

// 1 and *id when `piece` is a token, else 0.
int32_t lorry_tokenizer_token_id(const LorryTokenizer* tokenizer, const uint8_t* piece,
                                 size_t piece_len, uint32_t* id);

enum { LORRY_OFFSETS_NONE = 0, LORRY_OFFSETS_BYTES = 1, LORRY_OFFSETS_CHARS = 2 };
typedef struct LorryEncodeInput {
  const uint8_t* text;
  size_t text_len;
  const size_t* breaks;  // byte offsets p, ascending: no special token may start at or span p
  size_t n_breaks;
  uint8_t add_special;    // let the post-processor add its tokens (BOS)
  uint8_t allow_special;  // 0: text that looks like a special token is ordinary text
  uint8_t offsets;        // LORRY_OFFSETS_*
} LorryEncodeInput;
typedef struct LorryEncoding {
  uint32_t* ids;      // [n]
  uint32_t* offsets;  // [n][2] start and end, or NULL
  size_t n;
} LorryEncoding;
int32_t lorry_tokenizer_encode(const LorryTokenizer* tokenizer, const LorryEncodeInput* input,
                               LorryEncoding* out, char** error);

// Unknown ids are skipped. *text is not NUL-terminated.
int32_t lorry_tokenizer_decode(const LorryTokenizer* tokenizer, const uint32_t* ids, size_t n,
                               int32_t skip_special, char** text, size_t* text_len, char** error);

// ---- chat template ---------------------------------------------------------------------------

int32_t lorry_template_compile(const uint8_t* source, size_t source_len, LorryTemplate** out,
                               char** error);
void lorry_template_free(LorryTemplate* chat_template);

typedef struct LorryRenderInput {
  const uint8_t* messages;  // JSON array
  size_t messages_len;
  const uint8_t* client;  // JSON object: the client's variables (tools, documents, kwargs)
  size_t client_len;
  const uint8_t* server;  // JSON object: the server's (bos_token, add_generation_prompt); they win
  size_t server_len;
  size_t max_output;  // bytes
} LorryRenderInput;
typedef struct LorryRendered {
  char* text;
  size_t text_len;
  size_t* breaks;  // for lorry_tokenizer_encode: they keep the client's text from being special
  size_t n_breaks;
} LorryRendered;
int32_t lorry_template_render(const LorryTemplate* chat_template, const LorryTokenizer* tokenizer,
                              const LorryRenderInput* input, LorryRendered* out, char** error);

// ---- constraint ------------------------------------------------------------------------------

enum { LORRY_JSON_SCHEMA = 0, LORRY_REGEX = 1, LORRY_LARK = 2 };
enum {
  LORRY_CONSTRAINT_ACCEPTING = 1,  // what was committed is complete: an EOS token is allowed
  LORRY_CONSTRAINT_FINISHED = 2,   // nothing but EOS can follow, or EOS was committed
};
typedef struct LorryGrammar {
  int32_t kind;
  const uint8_t* text;
  size_t text_len;
  const uint32_t* eos;  // ids that end a generation, at least one
  size_t n_eos;
} LorryGrammar;
// Compiles; failing means that the grammar is refused, with a message of one line that does not
// repeat it; so is one that no token can begin. The constraint keeps what it needs of the tokenizer, which may be
// freed before it.
int32_t lorry_constraint_create(const LorryTokenizer* tokenizer, const LorryGrammar* grammar,
                                LorryConstraint** out, char** error);
// An independent constraint in the same state. Many threads may copy one at once, while none
// changes it.
int32_t lorry_constraint_copy(const LorryConstraint* constraint, LorryConstraint** out,
                              char** error);
// Memory that it takes, roughly.
size_t lorry_constraint_bytes(const LorryConstraint* constraint);
// Bit i%32 of words[i/32] = token i may come next. Words past the vocabulary are cleared.
int32_t lorry_constraint_mask(LorryConstraint* constraint, uint32_t* words, size_t n_words,
                              char** error);
// Appends n tokens (0 is allowed) and writes the LORRY_CONSTRAINT_* bits that hold after them.
int32_t lorry_constraint_commit(LorryConstraint* constraint, const uint32_t* ids, size_t n,
                                uint32_t* state, char** error);
void lorry_constraint_free(LorryConstraint* constraint);

#ifdef __cplusplus
}
#endif
