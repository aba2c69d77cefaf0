//! HF tokenizer with a table of its tokens, and encoding that can keep special tokens from being
//! recognised in chosen places.

use crate::failure::{invalid, Failure};
use crate::special::{Added, Guard, SpecialText};
use serde_json::Value;
use std::collections::HashMap;
use tokenizers::{
    Model, Normalizer, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer as HfTokenizer,
};

/// How the decoder of a tokenizer.json turns pieces into text.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    /// GPT-2's table: every character of a piece stands for a byte.
    ByteLevel,
    /// SentencePiece: a marker character for the space, `<0xXX>` for single bytes.
    ByteFallback,
    /// The marker only.
    Metaspace,
    Other,
}

pub struct TokenInfo {
    pub piece: String,
    pub bytes: Vec<u8>,
    pub known: bool,
    pub special: bool,
    pub byte_run: bool,
}

pub struct Tokenizer {
    pub hf: HfTokenizer,
    pub table: Vec<TokenInfo>,
    pub special_text: SpecialText,
    plain: Option<Added>,
    normalized: Option<Added>,
    pub constraints: crate::constraint::Factory,
}

pub struct EncodeOptions<'a> {
    pub breaks: &'a [usize],
    pub add_special: bool,
    pub allow_special: bool,
    pub offsets: OffsetType,
}

pub struct Encoded {
    pub ids: Vec<u32>,
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    pub fn load(json: &[u8]) -> Result<Tokenizer, Failure> {
        let value: Value = serde_json::from_slice(json).map_err(invalid)?;
        let mut hf = HfTokenizer::from_bytes(json).map_err(invalid)?;
        // A file saved after training may carry them, and would silently cut prompts.
        hf.with_truncation(None).map_err(invalid)?;
        hf.with_padding(None);
        let family = family_of(&value["decoder"]);
        let table = token_table(&hf, family);
        let (plain, normalized) = Added::of(&hf)?;
        let tokenizer = Tokenizer {
            special_text: SpecialText::of(&hf)?,
            plain,
            normalized,
            table,
            hf,
            constraints: Default::default(),
        };
        tokenizer.check_prefix(&value["post_processor"])?;
        Ok(tokenizer)
    }

    /// A missing BOS makes every answer subtly worse and no test of shapes sees it: compare what
    /// the post-processor declares with what it does, several times.
    fn check_prefix(&self, post_processor: &Value) -> Result<(), Failure> {
        let declared = declared_prefix(post_processor);
        let options = EncodeOptions {
            breaks: &[],
            add_special: true,
            allow_special: true,
            offsets: OffsetType::None,
        };
        for _ in 0..8 {
            let ids = self.encode("probe", &options)?.ids;
            if !ids.starts_with(&declared) {
                return Err(invalid(format!(
                    "its post-processor declares the leading tokens {declared:?}, but the text \
                     \"probe\" was encoded as {ids:?}"
                )));
            }
        }
        Ok(())
    }

    /// Step by step what `hf.encode` does, but with our own recognition of added tokens.
    pub fn encode(&self, text: &str, options: &EncodeOptions) -> Result<Encoded, Failure> {
        let guard = Guard {
            breaks: options.breaks,
            allow_special: options.allow_special,
        };
        let mut pieces = PreTokenizedString::from(text);
        pieces
            .split(|_, s| Ok(Added::split(self.plain.as_ref(), s, &guard)))
            .map_err(invalid)?;
        pieces
            .split(|_, mut s| {
                if let Some(normalizer) = self.hf.get_normalizer() {
                    normalizer.normalize(&mut s)?;
                }
                Ok(Added::split(self.normalized.as_ref(), s, &guard))
            })
            .map_err(invalid)?;
        if let Some(pre_tokenizer) = self.hf.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(invalid)?;
        }
        self.hf
            .get_model()
            .tokenize_in_pretokenized(&mut pieces, None)
            .map_err(invalid)?;
        let encoding = pieces
            .into_encoding(None, 0, options.offsets)
            .map_err(invalid)?;
        let encoding = self
            .hf
            .post_process(encoding, None, options.add_special)
            .map_err(invalid)?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
        })
    }
}

/// The ids that a TemplateProcessing puts before the text. Other post-processors declare none.
fn declared_prefix(post_processor: &Value) -> Vec<u32> {
    if let Some(parts) = post_processor["processors"].as_array() {
        return parts.iter().rev().flat_map(declared_prefix).collect();
    }
    let single = post_processor["single"].as_array().into_iter().flatten();
    single
        .map_while(|part| part["SpecialToken"]["id"].as_str())
        .filter_map(|name| post_processor["special_tokens"][name]["ids"].as_array())
        .flatten()
        .filter_map(|id| u32::try_from(id.as_u64()?).ok())
        .collect()
}

fn family_of(decoder: &Value) -> Family {
    let kinds: Vec<&str> = match decoder["decoders"].as_array() {
        Some(parts) => parts.iter().filter_map(|d| d["type"].as_str()).collect(),
        None => decoder["type"].as_str().into_iter().collect(),
    };
    if kinds.contains(&"ByteLevel") {
        Family::ByteLevel
    } else if kinds.contains(&"ByteFallback") {
        Family::ByteFallback
    } else if kinds.contains(&"Metaspace") {
        Family::Metaspace
    } else {
        Family::Other
    }
}

fn token_table(hf: &HfTokenizer, family: Family) -> Vec<TokenInfo> {
    let added = hf.get_added_vocabulary();
    let byte_of_char = byte_of_char();
    let end = hf
        .get_vocab(true)
        .values()
        .max()
        .map_or(0, |&id| id as usize + 1);
    (0..end as u32)
        .map(|id| {
            let known = hf.id_to_token(id);
            let piece = known.clone().unwrap_or_default();
            let byte = match family {
                Family::ByteFallback => byte_of_fallback(&piece),
                _ => None,
            };
            TokenInfo {
                bytes: match byte {
                    Some(byte) => vec![byte],
                    None => bytes_of(&piece, family, &byte_of_char),
                },
                known: known.is_some(),
                special: added.is_special_token(&piece),
                byte_run: byte.is_some(),
                piece,
            }
        })
        .collect()
}

fn byte_of_fallback(piece: &str) -> Option<u8> {
    if piece.len() == 6 && piece.starts_with("<0x") && piece.ends_with('>') {
        u8::from_str_radix(piece.get(3..5)?, 16).ok()
    } else {
        None
    }
}

fn bytes_of(piece: &str, family: Family, byte_of_char: &HashMap<char, u8>) -> Vec<u8> {
    match family {
        // A piece with a character outside of the table is its own text, as in HF's decoder.
        Family::ByteLevel => piece
            .chars()
            .map(|c| byte_of_char.get(&c).copied())
            .collect::<Option<Vec<u8>>>()
            .unwrap_or_else(|| piece.as_bytes().to_vec()),
        Family::ByteFallback | Family::Metaspace => piece.replace('\u{2581}', " ").into_bytes(),
        Family::Other => piece.as_bytes().to_vec(),
    }
}

/// GPT-2's bytes_to_unicode, inverted: printable Latin-1 stands for itself, the other 68 bytes
/// follow from U+0100 on, in order.
fn byte_of_char() -> HashMap<char, u8> {
    let itself = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=255u8).filter(|&b| !itself(b)).zip('\u{100}'..);
    (0..=255u8)
        .filter(|&b| itself(b))
        .map(|b| (char::from(b), b))
        .chain(others.map(|(b, c)| (c, b)))
        .collect()
}
