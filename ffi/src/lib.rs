//! The C interface of include/lorry_ffi.h, which documents every function.

mod constraint;
mod failure;
mod guard;
mod pyjson;
mod special;
mod template;
mod tokenizer;

use constraint::{Constraint, Grammar};
use failure::{invalid, Failure, OK, PANIC};
use libc::{c_char, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use template::{RenderInput, Template};
use tokenizer::{EncodeOptions, Tokenizer};
use tokenizers::OffsetType;

/// Characters of an error message.
const MAX_MESSAGE: usize = 1000;

/// Runs `body`; a failure or a panic becomes a code and a message.
fn guarded(error: *mut *mut c_char, body: impl FnOnce() -> Result<(), Failure>) -> i32 {
    static QUIET: std::sync::Once = std::sync::Once::new();
    // The default hook prints the panic, which may hold user text, to stderr.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return OK,
        Ok(Err(failure)) => failure,
        Err(payload) => Failure {
            code: PANIC,
            message: match payload.downcast_ref::<String>() {
                Some(text) => text.clone(),
                None => payload
                    .downcast_ref::<&str>()
                    .unwrap_or(&"panic")
                    .to_string(),
            },
        },
    };
    if !error.is_null() {
        // Some of the libraries' messages repeat all of their input.
        let short = failure
            .message
            .chars()
            .take(MAX_MESSAGE)
            .collect::<String>();
        let mut message = short.replace('\0', " ").into_bytes();
        message.push(0);
        // SAFETY: `error` is not null, and the caller's.
        unsafe { *error = give(&message).cast() };
    }
    failure.code
}

/// A copy that lorry_ffi_free can free. Never null, also for nothing.
fn give<T: Copy>(items: &[T]) -> *mut T {
    let size = std::mem::size_of_val(items);
    // SAFETY: malloc aligns for any of our types, and the copy stays within both arrays.
    unsafe {
        let memory = libc::malloc(size.max(1)).cast::<T>();
        assert!(!memory.is_null(), "out of memory");
        ptr::copy_nonoverlapping(items.as_ptr(), memory, items.len());
        memory
    }
}

/// # Safety
/// `data` points to `len` items, or `len` is 0.
unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    match len {
        0 => &[],
        _ => std::slice::from_raw_parts(data, len),
    }
}

unsafe fn text<'a>(data: *const u8, len: usize) -> Result<&'a str, Failure> {
    std::str::from_utf8(slice(data, len)).map_err(|e| invalid(format!("not UTF-8: {e}")))
}

unsafe fn free<T>(object: *mut T) {
    if !object.is_null() {
        // A destructor that panics must not unwind into C.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(object))));
    }
}

#[no_mangle]
pub unsafe extern "C" fn lorry_ffi_free(memory: *mut c_void) {
    libc::free(memory);
}

#[no_mangle]
pub unsafe extern "C" fn lorry_tokenizer_load(
    json: *const u8,
    json_len: usize,
    out: *mut *mut Tokenizer,
    error: *mut *mut c_char,
) -> i32 {
    guarded(error, || {
        let tokenizer = Tokenizer::load(slice(json, json_len))?;
        *out = Box::into_raw(Box::new(tokenizer));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_tokenizer_free(tokenizer: *mut Tokenizer) {
    free(tokenizer);
}

#[no_mangle]
pub unsafe extern "C" fn lorry_tokenizer_vocab_size(tokenizer: *const Tokenizer) -> usize {
    (*tokenizer).table.len()
}

#[repr(C)]
pub struct LorryToken {
    flags: u32,
    piece: *const c_char,
    piece_len: usize,
    bytes: *const u8,
    bytes_len: usize,
}

#[no_mangle]
pub unsafe extern "C" fn lorry_tokenizer_token(
    tokenizer: *const Tokenizer,
    id: u32,
    out: *mut LorryToken,
) {
    let tokenizer = &*tokenizer;
    *out = match tokenizer.table.get(id as usize) {
        Some(token) if token.known => LorryToken {
            flags: 1 | u32::from(token.special) << 1 | u32::from(token.byte_run) << 2,
            piece: token.piece.as_ptr().cast(),
            piece_len: token.piece.len(),
            bytes: token.bytes.as_ptr(),
            bytes_len: token.bytes.len(),
        },
        _ => LorryToken {
            flags: 0,
            piece: ptr::null(),
            piece_len: 0,
            bytes: ptr::null(),
            bytes_len: 0,
        },
    };
}

#[no_mangle]
pub unsafe extern "C" fn lorry_tokenizer_token_id(
    tokenizer: *const Tokenizer,
    piece: *const u8,
    piece_len: usize,
    id: *mut u32,
) -> i32 {
    let tokenizer = &*tokenizer;
    let found = text(piece, piece_len)
        .ok()
        .and_then(|piece| tokenizer.hf.token_to_id(piece));
    match found {
        Some(found) => {
            *id = found;
            1
        }
        None => 0,
    }
}

#[repr(C)]
pub struct LorryEncodeInput {
    text: *const u8,
    text_len: usize,
    breaks: *const usize,
    n_breaks: usize,
    add_special: u8,
    allow_special: u8,
    offsets: u8,
}

#[repr(C)]
pub struct LorryEncoding {
    ids: *mut u32,
    offsets: *mut u32,
    n: usize,
}

#[no_mangle]
pub unsafe extern "C" fn lorry_tokenizer_encode(
    tokenizer: *const Tokenizer,
    input: *const LorryEncodeInput,
    out: *mut LorryEncoding,
    error: *mut *mut c_char,
) -> i32 {
    guarded(error, || {
        let input = &*input;
        let options = EncodeOptions {
            breaks: slice(input.breaks, input.n_breaks),
            add_special: input.add_special != 0,
            allow_special: input.allow_special != 0,
            offsets: match input.offsets {
                0 => OffsetType::None,
                1 => OffsetType::Byte,
                _ => OffsetType::Char,
            },
        };
        let encoded = (*tokenizer).encode(text(input.text, input.text_len)?, &options)?;
        let offsets: Vec<u32> = encoded
            .offsets
            .iter()
            .flat_map(|&(start, end)| [start as u32, end as u32])
            .collect();
        *out = LorryEncoding {
            ids: give(&encoded.ids),
            offsets: match input.offsets {
                0 => ptr::null_mut(),
                _ => give(&offsets),
            },
            n: encoded.ids.len(),
        };
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_tokenizer_decode(
    tokenizer: *const Tokenizer,
    ids: *const u32,
    n: usize,
    skip_special: i32,
    text: *mut *mut c_char,
    text_len: *mut usize,
    error: *mut *mut c_char,
) -> i32 {
    guarded(error, || {
        let decoded = (*tokenizer)
            .hf
            .decode(slice(ids, n), skip_special != 0)
            .map_err(invalid)?;
        *text_len = decoded.len();
        *text = give(decoded.as_bytes()).cast();
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_template_compile(
    source: *const u8,
    source_len: usize,
    out: *mut *mut Template,
    error: *mut *mut c_char,
) -> i32 {
    guarded(error, || {
        let compiled = Template::compile(text(source, source_len)?)?;
        *out = Box::into_raw(Box::new(compiled));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_template_free(chat_template: *mut Template) {
    free(chat_template);
}

#[repr(C)]
pub struct LorryRenderInput {
    messages: *const u8,
    messages_len: usize,
    client: *const u8,
    client_len: usize,
    server: *const u8,
    server_len: usize,
    max_output: usize,
}

#[repr(C)]
pub struct LorryRendered {
    text: *mut c_char,
    text_len: usize,
    breaks: *mut usize,
    n_breaks: usize,
}

#[no_mangle]
pub unsafe extern "C" fn lorry_template_render(
    chat_template: *const Template,
    tokenizer: *const Tokenizer,
    input: *const LorryRenderInput,
    out: *mut LorryRendered,
    error: *mut *mut c_char,
) -> i32 {
    guarded(error, || {
        let input = &*input;
        let input = RenderInput {
            messages: slice(input.messages, input.messages_len),
            client: slice(input.client, input.client_len),
            server: slice(input.server, input.server_len),
            max_output: input.max_output,
        };
        let rendered = (*chat_template).render(&*tokenizer, &input)?;
        *out = LorryRendered {
            text: give(rendered.text.as_bytes()).cast(),
            text_len: rendered.text.len(),
            breaks: give(&rendered.breaks),
            n_breaks: rendered.breaks.len(),
        };
        Ok(())
    })
}

#[repr(C)]
pub struct LorryGrammar {
    kind: i32,
    text: *const u8,
    text_len: usize,
    eos: *const u32,
    n_eos: usize,
}

#[no_mangle]
pub unsafe extern "C" fn lorry_constraint_create(
    tokenizer: *const Tokenizer,
    grammar: *const LorryGrammar,
    out: *mut *mut Constraint,
    error: *mut *mut c_char,
) -> i32 {
    guarded(error, || {
        let grammar = &*grammar;
        let source = text(grammar.text, grammar.text_len)?;
        let kind = match grammar.kind {
            0 => Grammar::JsonSchema(source),
            1 => Grammar::Regex(source),
            2 => Grammar::Lark(source),
            other => return Err(invalid(format!("unknown kind of grammar {other}"))),
        };
        let eos = slice(grammar.eos, grammar.n_eos);
        let constraint = Constraint::create(&*tokenizer, kind, eos)?;
        *out = Box::into_raw(Box::new(constraint));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_constraint_copy(
    constraint: *const Constraint,
    out: *mut *mut Constraint,
    error: *mut *mut c_char,
) -> i32 {
    guarded(error, || {
        *out = Box::into_raw(Box::new((*constraint).copy()));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_constraint_bytes(constraint: *const Constraint) -> usize {
    (*constraint).bytes()
}

#[no_mangle]
pub unsafe extern "C" fn lorry_constraint_mask(
    constraint: *mut Constraint,
    words: *mut u32,
    n_words: usize,
    error: *mut *mut c_char,
) -> i32 {
    guarded(error, || {
        let words = match n_words {
            0 => &mut [],
            _ => std::slice::from_raw_parts_mut(words, n_words),
        };
        (*constraint).mask(words)
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_constraint_commit(
    constraint: *mut Constraint,
    ids: *const u32,
    n: usize,
    state: *mut u32,
    error: *mut *mut c_char,
) -> i32 {
    guarded(error, || {
        let (accepting, finished) = (*constraint).commit(slice(ids, n))?;
        *state = u32::from(accepting) | u32::from(finished) << 1;
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_constraint_free(constraint: *mut Constraint) {
    free(constraint);
}
