//! Constrained decoding: llguidance over the vocabulary of a tokenizer.

use crate::failure::{invalid, limit, Failure};
use crate::tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;
use std::sync::{Arc, Mutex};

/// Brackets inside of brackets. The grammar parsers recurse, and a stack overflow is no error that
/// could be caught.
const MAX_NESTING: usize = 100;
const MAX_GRAMMAR: usize = 1 << 20;
/// A lexer state takes one to two kilobytes, and each sequence has a lexer of its own: with
/// llguidance's 250,000 one request could take all memory. The largest schemas need a few thousand.
const MAX_LEXER_STATES: usize = 20_000;
/// Between the parts of a JSON text. Without a bound a model may write blanks for ever.
const JSON_WHITESPACE: &str = r"[ \n\r\t]{1,24}";
/// Characters of what a refusal says.
const MAX_MESSAGE: usize = 200;
/// What a compiled grammar takes beside its lexer, for each byte of its text: rough, and high.
const BYTES_PER_BYTE: usize = 64;

/// The parser factory of a vocabulary, made at first use and kept for one set of EOS ids.
#[derive(Default)]
pub struct Factory(Mutex<Option<(Vec<u32>, Arc<ParserFactory>)>>);

pub enum Grammar<'a> {
    JsonSchema(&'a str),
    Regex(&'a str),
    Lark(&'a str),
}

pub struct Constraint {
    matcher: Matcher,
    bytes: usize,
}

// A constraint may move between threads, and many may copy one; the C interface cannot check it.
const _: fn() = || {
    fn send_and_sync<T: Send + Sync>() {}
    send_and_sync::<Constraint>();
};

impl Factory {
    fn of(&self, tokenizer: &Tokenizer, eos: &[u32]) -> Result<Arc<ParserFactory>, Failure> {
        let mut slot = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((known, factory)) = slot.as_ref() {
            if known == eos {
                return Ok(factory.clone());
            }
        }
        let factory = Arc::new(build(tokenizer, eos)?);
        *slot = Some((eos.to_vec(), factory.clone()));
        Ok(factory)
    }
}

fn build(tokenizer: &Tokenizer, eos: &[u32]) -> Result<ParserFactory, Failure> {
    let size = tokenizer.table.len() as u32;
    if eos.is_empty() || eos.iter().any(|&id| id >= size) {
        return Err(invalid("a constraint needs EOS ids of the vocabulary"));
    }
    let words: Vec<Vec<u8>> = tokenizer
        .table
        .iter()
        .map(|token| match token.special {
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], token.piece.as_bytes()].concat(),
            false => token.bytes.clone(),
        })
        .collect();
    let trie = TokTrie::from(&TokRxInfo::new(size, eos[0]), &words).with_eos_tokens(eos);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(invalid)?;
    factory.quiet();
    // Verbose errors repeat the grammar and the tokens so far: a log would show user text.
    factory.limits_mut().verbose_errors = false;
    factory.limits_mut().max_lexer_states = MAX_LEXER_STATES;
    Ok(factory)
}

impl Constraint {
    pub fn create(
        tokenizer: &Tokenizer,
        grammar: Grammar,
        eos: &[u32],
    ) -> Result<Constraint, Failure> {
        let text = match grammar {
            Grammar::JsonSchema(t) | Grammar::Regex(t) | Grammar::Lark(t) => t,
        };
        if text.len() > MAX_GRAMMAR {
            return Err(limit(format!(
                "the grammar has {} bytes, the limit is {MAX_GRAMMAR}",
                text.len()
            )));
        }
        if nesting(text) > MAX_NESTING {
            return Err(limit(format!(
                "the grammar nests deeper than {MAX_NESTING} brackets"
            )));
        }
        let factory = tokenizer.constraints.of(tokenizer, eos)?;
        let top = match grammar {
            Grammar::JsonSchema(t) => TopLevelGrammar::from_json_schema(schema_of(t)?),
            Grammar::Regex(t) => TopLevelGrammar::from_regex(t),
            Grammar::Lark(t) => TopLevelGrammar::from_lark(t.to_owned()),
        };
        let parser = factory.create_parser(top).map_err(refused)?;
        let lexer = parser.parser.lexer_stats().num_bytes;
        let mut matcher = Matcher::new(Ok(parser));
        // The first mask costs the most: it is made here, once for all copies.
        let first = matcher.compute_mask_or_eos().map_err(refused)?;
        if first.num_set() == 0 {
            return Err(invalid("no token of the vocabulary can begin it"));
        }
        Ok(Constraint {
            matcher,
            bytes: lexer + BYTES_PER_BYTE * text.len(),
        })
    }

    /// One of its own, with nothing shared, in the same state.
    pub fn copy(&self) -> Constraint {
        Constraint {
            matcher: self.matcher.deep_clone(),
            bytes: self.bytes,
        }
    }

    /// Memory, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn mask(&mut self, words: &mut [u32]) -> Result<(), Failure> {
        let mask = self.matcher.compute_mask_or_eos().map_err(refused)?;
        let found = mask.as_slice();
        let n = found.len().min(words.len());
        words[..n].copy_from_slice(&found[..n]);
        words[n..].fill(0);
        Ok(())
    }

    /// (accepting, finished) after the tokens.
    pub fn commit(&mut self, ids: &[u32]) -> Result<(bool, bool), Failure> {
        self.matcher.consume_tokens(ids).map_err(refused)?;
        let finished = self.matcher.is_stopped();
        let accepting = finished || self.matcher.is_accepting().map_err(refused)?;
        Ok((accepting, finished))
    }
}

/// The schema, with bounded blanks unless it says itself how it is to be written.
fn schema_of(text: &str) -> Result<Value, Failure> {
    let mut schema: Value = serde_json::from_str(text)
        .map_err(invalid)?;
    if schema.is_object() && schema.get("x-guidance").is_none() {
        let options = JsonCompileOptions {
            whitespace_pattern: Some(JSON_WHITESPACE.to_owned()),
            ..JsonCompileOptions::default()
        };
        options.apply_to(&mut schema);
    }
    Ok(schema)
}

/// What llguidance says, without the grammar: parsers of regular expressions and of Lark print the
/// lines around a mistake.
fn refused(error: impl std::fmt::Display) -> Failure {
    let all = error.to_string();
    let line = all
        .lines()
        .find_map(|l| l.trim().strip_prefix("error: "))
        .or_else(|| all.lines().next())
        .unwrap_or_default();
    let mut short: String = line.chars().take(MAX_MESSAGE).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    invalid(short)
}

fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
