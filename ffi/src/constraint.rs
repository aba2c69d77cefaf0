//! Constrained decoding: llguidance over the vocabulary of a tokenizer.

use crate::failure::{invalid, limit, Failure};
use crate::tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use std::sync::{Arc, Mutex};

/// Brackets inside of brackets. The grammar parsers recurse, and a stack overflow is no error that
/// could be caught.
const MAX_NESTING: usize = 100;
const MAX_GRAMMAR: usize = 1 << 20;

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
}

// A constraint may move between threads; the C interface cannot check it.
const _: fn() = || {
    fn send<T: Send>() {}
    send::<Constraint>();
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
            Grammar::JsonSchema(t) => {
                TopLevelGrammar::from_json_schema(serde_json::from_str(t).map_err(invalid)?)
            }
            Grammar::Regex(t) => TopLevelGrammar::from_regex(t),
            Grammar::Lark(t) => TopLevelGrammar::from_lark(t.to_owned()),
        };
        let matcher = Matcher::new(factory.create_parser(top));
        match matcher.get_error() {
            Some(message) => Err(invalid(message)),
            None => Ok(Constraint { matcher }),
        }
    }

    pub fn mask(&mut self, words: &mut [u32]) -> Result<(), Failure> {
        let mask = self.matcher.compute_mask_or_eos().map_err(invalid)?;
        let found = mask.as_slice();
        let n = found.len().min(words.len());
        words[..n].copy_from_slice(&found[..n]);
        words[n..].fill(0);
        Ok(())
    }

    /// (accepting, finished) after the tokens.
    pub fn commit(&mut self, ids: &[u32]) -> Result<(bool, bool), Failure> {
        self.matcher.consume_tokens(ids).map_err(invalid)?;
        let finished = self.matcher.is_stopped();
        let accepting = finished || self.matcher.is_accepting().map_err(invalid)?;
        Ok((accepting, finished))
    }
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
