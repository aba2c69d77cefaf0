//! The one error type of the library: a code of lorry_ffi.h and a message.

use std::fmt::Display;

pub const OK: i32 = 0;
pub const INVALID: i32 = 1;
pub const LIMIT: i32 = 2;
pub const PANIC: i32 = 3;

pub struct Failure {
    pub code: i32,
    pub message: String,
}

pub fn invalid(error: impl Display) -> Failure {
    Failure {
        code: INVALID,
        message: error.to_string(),
    }
}

pub fn limit(message: impl Display) -> Failure {
    Failure {
        code: LIMIT,
        message: message.to_string(),
    }
}
