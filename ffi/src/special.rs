//! Recognition of added tokens in text, and of client text that could be taken for one.

use crate::failure::{invalid, Failure};
use aho_corasick::{AhoCorasick, Input, MatchKind};
use std::collections::HashSet;
use tokenizers::normalizer::Range;
use tokenizers::{AddedToken, NormalizedString, Normalizer, Token, Tokenizer as HfTokenizer};

/// Where special tokens may be recognised.
pub struct Guard<'a> {
    /// Ascending byte offsets p of the original text: no special token may start at or span p.
    pub breaks: &'a [usize],
    pub allow_special: bool,
}

impl Guard<'_> {
    fn forbids(&self, start: usize, end: usize) -> bool {
        if !self.allow_special {
            return true;
        }
        let next = self.breaks.partition_point(|&p| p < start);
        self.breaks.get(next).is_some_and(|&p| p < end)
    }
}

/// Finds added tokens, as `AddedVocabulary::find_matches` of HF does (leftmost, then longest).
pub struct Added {
    automaton: AhoCorasick,
    tokens: Vec<(u32, AddedToken)>,
}

type Piece = (NormalizedString, Option<Vec<Token>>);

impl Added {
    /// The tokens that are sought in the text as it is, and those sought after normalisation.
    pub fn of(hf: &HfTokenizer) -> Result<(Option<Added>, Option<Added>), Failure> {
        let mut plain = Vec::new();
        let mut normalized = Vec::new();
        for (id, token) in hf.get_added_tokens_decoder() {
            if token.normalized {
                let pattern = hf.get_added_vocabulary().simple_id_to_token(id);
                normalized.push((pattern.unwrap_or_default(), id, token));
            } else {
                plain.push((token.content.clone(), id, token));
            }
        }
        Ok((Added::build(plain)?, Added::build(normalized)?))
    }

    fn build(mut entries: Vec<(String, u32, AddedToken)>) -> Result<Option<Added>, Failure> {
        entries.retain(|(pattern, _, _)| !pattern.is_empty());
        if entries.is_empty() {
            return Ok(None);
        }
        entries.sort_by_key(|(_, id, _)| *id);
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(entries.iter().map(|(pattern, _, _)| pattern))
            .map_err(invalid)?;
        let tokens = entries.into_iter().map(|(_, id, t)| (id, t)).collect();
        Ok(Some(Added { automaton, tokens }))
    }

    pub fn split(added: Option<&Added>, s: NormalizedString, guard: &Guard) -> Vec<Piece> {
        match added {
            None => vec![(s, None)],
            Some(added) => added.split_at_tokens(s, guard),
        }
    }

    fn split_at_tokens(&self, s: NormalizedString, guard: &Guard) -> Vec<Piece> {
        let text = s.get();
        let cut = |start, end| s.slice(Range::Normalized(start..end)).unwrap_or_default();
        let mut pieces = Vec::new();
        let mut done = 0;
        let mut at = 0;
        while let Some(found) = self.automaton.find(Input::new(text).range(at..)) {
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            let (from, to) = cut(start, end).offsets_original();
            if token.special && guard.forbids(from, to) {
                // Another token may begin inside of what is not one.
                at = start + text[start..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            at = end;
            if token.single_word && !is_word(text, start, end) {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
                at = end;
            }
            if done < start {
                pieces.push((cut(done, start), None));
            }
            let value = text[start..end].to_owned();
            let length = value.len();
            pieces.push((
                cut(start, end),
                Some(vec![Token::new(*id, value, (0, length))]),
            ));
            done = end;
        }
        if done == 0 {
            return vec![(s, None)];
        }
        if done < text.len() {
            pieces.push((cut(done, text.len()), None));
        }
        pieces
    }
}

fn is_word(text: &str, start: usize, end: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..start].ends_with(word) && !text[end..].starts_with(word)
}

/// The special tokens' texts, to find where a client's string could be (part of) one.
pub struct SpecialText {
    tokens: Vec<String>,
    /// Tokens that the encoder looks for only after normalising.
    normalized: Option<(AhoCorasick, tokenizers::NormalizerWrapper)>,
    /// Every occurrence, overlapping ones too.
    automaton: Option<AhoCorasick>,
    prefixes: HashSet<String>,
    suffixes: HashSet<String>,
    longest: usize,
}

impl SpecialText {
    pub fn of(hf: &HfTokenizer) -> Result<SpecialText, Failure> {
        let mut tokens = Vec::new();
        let mut patterns = Vec::new();
        for (id, token) in hf.get_added_tokens_decoder() {
            if !token.special || token.content.is_empty() {
                continue;
            }
            if token.normalized {
                patterns.extend(hf.get_added_vocabulary().simple_id_to_token(id));
            }
            tokens.push(token.content);
        }
        let cuts =
            |t: &String| -> Vec<usize> { t.char_indices().skip(1).map(|(i, _)| i).collect() };
        let prefixes = tokens
            .iter()
            .flat_map(|t| cuts(t).into_iter().map(|i| t[..i].to_owned()))
            .collect();
        let suffixes = tokens
            .iter()
            .flat_map(|t| cuts(t).into_iter().map(|i| t[i..].to_owned()))
            .collect();
        let build = |p: &[String]| -> Result<Option<AhoCorasick>, Failure> {
            if p.is_empty() {
                return Ok(None);
            }
            Ok(Some(AhoCorasick::new(p).map_err(invalid)?))
        };
        let normalized = match (build(&patterns)?, hf.get_normalizer()) {
            (Some(automaton), Some(normalizer)) => Some((automaton, normalizer.clone())),
            _ => None,
        };
        Ok(SpecialText {
            automaton: build(&tokens)?,
            normalized,
            prefixes,
            suffixes,
            longest: tokens.iter().map(String::len).max().unwrap_or(0),
            tokens,
        })
    }

    /// Where a special token's text begins inside of `s`. Ascending.
    pub fn occurrences(&self, s: &str) -> Vec<usize> {
        let mut at: Vec<usize> = Vec::new();
        if let Some(automaton) = &self.automaton {
            at.extend(automaton.find_overlapping_iter(s).map(|m| m.start()));
        }
        if let Some((automaton, normalizer)) = &self.normalized {
            let mut n = NormalizedString::from(s);
            if normalizer.normalize(&mut n).is_ok() {
                for m in automaton.find_overlapping_iter(n.get()) {
                    let found = n.slice(Range::Normalized(m.start()..m.end()));
                    at.extend(found.map(|f| f.offsets_original().0));
                }
            }
        }
        at.sort_unstable();
        at.dedup();
        at
    }

    /// As `occurrences`, and where `s` could become part of a special token with what a template
    /// puts before or after it. Both are looked at with and without the whitespace at its ends.
    pub fn risks(&self, s: &str) -> Vec<usize> {
        let mut at = self.occurrences(s);
        let lead = s.len() - s.trim_start().len();
        let tail = s.trim_end().len();
        for start in [0, lead] {
            if self.may_continue(&s[start..]) {
                at.push(start);
            }
        }
        if lead < tail && tail - lead < self.longest {
            let inner = &s[lead..tail];
            if self.tokens.iter().any(|t| t.contains(inner)) {
                at.push(lead);
            }
        }
        for end in [tail, s.len()] {
            let from = end.saturating_sub(self.longest);
            let starts = (from..end).filter(|&i| s.is_char_boundary(i));
            at.extend(starts.filter(|&i| self.prefixes.contains(&s[i..end])));
        }
        at.sort_unstable();
        at.dedup();
        at
    }

    fn may_continue(&self, s: &str) -> bool {
        (1..=s.len().min(self.longest))
            .filter(|&i| s.is_char_boundary(i))
            .any(|i| self.suffixes.contains(&s[..i]))
    }
}
