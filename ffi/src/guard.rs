//! Marks in a client's JSON, before it is rendered, the places where its text could be taken for a
//! special token, and reads them back from the rendered text.
//!
//! The mark is one private-use character that occurs in none of the inputs. It stands directly
//! before the place, so text without anything suspicious is rendered untouched, and trim, split,
//! join, replace and tojson carry it along. What it cannot see: a template that itself builds a
//! special token out of client text by deleting or changing characters in its middle.

use crate::failure::{limit, Failure};
use crate::special::SpecialText;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Templates build markers such as `<|user|>` from these, so they stay as they are.
const ROLES: [&str; 8] = [
    "assistant",
    "developer",
    "function",
    "ipython",
    "model",
    "system",
    "tool",
    "user",
];

pub struct Marker<'a> {
    special: &'a SpecialText,
    mark: char,
}

impl<'a> Marker<'a> {
    /// `texts`: everything the template can print from, but for `values`.
    pub fn new(
        special: &'a SpecialText,
        texts: &[&str],
        values: &[&Value],
    ) -> Result<Marker<'a>, Failure> {
        let mut used = HashSet::new();
        texts.iter().for_each(|t| collect_text(t, &mut used));
        values.iter().for_each(|v| collect(v, &mut used));
        let mark = ('\u{E000}'..='\u{F8FF}')
            .chain('\u{F0000}'..='\u{FFFFD}')
            .find(|c| !used.contains(c))
            .ok_or_else(|| limit("the messages use every private-use character"))?;
        Ok(Marker { special, mark })
    }

    pub fn messages(&self, messages: &mut Value) {
        for message in messages.as_array_mut().into_iter().flatten() {
            let role = message.get("role").and_then(Value::as_str);
            let known = role.filter(|r| ROLES.contains(r)).map(str::to_owned);
            self.value(message);
            if let Some(role) = known {
                message["role"] = Value::String(role);
            }
        }
    }

    pub fn value(&self, value: &mut Value) {
        match value {
            Value::String(s) => *s = self.marked(s, &self.special.risks(s)),
            Value::Array(items) => items.iter_mut().for_each(|v| self.value(v)),
            Value::Object(map) => {
                let entries = std::mem::take(map);
                *map = entries
                    .into_iter()
                    .map(|(key, mut v)| {
                        self.value(&mut v);
                        (self.key(&key), v)
                    })
                    .collect::<Map<_, _>>();
            }
            _ => {}
        }
    }

    /// A plain word is what a template looks up, so it is marked only where it holds a whole token.
    fn key(&self, key: &str) -> String {
        let plain = key
            .chars()
            .all(|c| c.is_alphanumeric() || c == '_' || c == '-');
        let at = match plain {
            true => self.special.occurrences(key),
            false => self.special.risks(key),
        };
        self.marked(key, &at)
    }

    fn marked(&self, s: &str, at: &[usize]) -> String {
        let mut result = String::with_capacity(s.len() + 3 * at.len());
        let mut done = 0;
        for &p in at {
            result.push_str(&s[done..p]);
            result.push(self.mark);
            done = p;
        }
        result.push_str(&s[done..]);
        result
    }

    /// The text without marks, and the byte offsets at which they stood, ascending.
    pub fn unmark(&self, rendered: &str) -> (String, Vec<usize>) {
        let mut text = String::with_capacity(rendered.len());
        let mut breaks = Vec::new();
        for part in rendered.split(self.mark) {
            text.push_str(part);
            breaks.push(text.len());
        }
        breaks.pop();
        breaks.dedup();
        (text, breaks)
    }
}

fn collect_text(s: &str, used: &mut HashSet<char>) {
    let private = |c: &char| matches!(*c as u32, 0xE000..=0xF8FF | 0xF0000..=0xFFFFD);
    used.extend(s.chars().filter(private));
}

fn collect(value: &Value, used: &mut HashSet<char>) {
    match value {
        Value::String(s) => collect_text(s, used),
        Value::Array(items) => items.iter().for_each(|v| collect(v, used)),
        Value::Object(map) => map.iter().for_each(|(key, v)| {
            collect_text(key, used);
            collect(v, used);
        }),
        _ => {}
    }
}
