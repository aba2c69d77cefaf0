//! JSON as Python's json.dumps writes it: HF's chat templates use it as the filter `tojson`.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::Formatter;
use std::io::{Result, Write};

struct PythonFormatter {
    item: String,
    key: String,
    indent: Option<String>,
    depth: usize,
    empty: bool,
}

impl PythonFormatter {
    fn line<W: ?Sized + Write>(&self, w: &mut W) -> Result<()> {
        if let Some(indent) = &self.indent {
            w.write_all(b"\n")?;
            for _ in 0..self.depth {
                w.write_all(indent.as_bytes())?;
            }
        }
        Ok(())
    }

    fn open<W: ?Sized + Write>(&mut self, w: &mut W, bracket: &[u8]) -> Result<()> {
        self.depth += 1;
        self.empty = true;
        w.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, w: &mut W, bracket: &[u8]) -> Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(w)?;
        }
        self.empty = false;
        w.write_all(bracket)
    }

    fn separate<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> Result<()> {
        if !first {
            w.write_all(self.item.as_bytes())?;
        }
        self.line(w)
    }
}

impl Formatter for PythonFormatter {
    fn begin_array<W: ?Sized + Write>(&mut self, w: &mut W) -> Result<()> {
        self.open(w, b"[")
    }
    fn end_array<W: ?Sized + Write>(&mut self, w: &mut W) -> Result<()> {
        self.close(w, b"]")
    }
    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> Result<()> {
        self.separate(w, first)
    }
    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> Result<()> {
        self.empty = false;
        Ok(())
    }
    fn begin_object<W: ?Sized + Write>(&mut self, w: &mut W) -> Result<()> {
        self.open(w, b"{")
    }
    fn end_object<W: ?Sized + Write>(&mut self, w: &mut W) -> Result<()> {
        self.close(w, b"}")
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> Result<()> {
        self.separate(w, first)
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> Result<()> {
        w.write_all(self.key.as_bytes())
    }
    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> Result<()> {
        self.empty = false;
        Ok(())
    }
    fn write_f64<W: ?Sized + Write>(&mut self, w: &mut W, value: f64) -> Result<()> {
        w.write_all(float_repr(value).as_bytes())
    }
}

/// Python's repr of a float. serde_json has the same shortest digits, but 1e20 for 1e+20, and
/// turns to the exponent one power later for small numbers.
fn float_repr(value: f64) -> String {
    let text = serde_json::Number::from_f64(value).map_or("null".into(), |n| n.to_string());
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.as_str()),
    };
    if let Some((mantissa, exponent)) = digits.split_once('e') {
        let (mark, power) = match exponent.strip_prefix('-') {
            Some(power) => ('-', power),
            None => ('+', exponent.trim_start_matches('+')),
        };
        return format!("{sign}{mantissa}e{mark}{power:0>2}");
    }
    match digits.strip_prefix("0.0000") {
        Some(rest) if rest.len() > 1 => format!("{sign}{}.{}e-05", &rest[..1], &rest[1..]),
        Some(rest) if rest != "0" && !rest.is_empty() => format!("{sign}{rest}e-05"),
        _ => text,
    }
}

fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().map(|(k, v)| (k, sorted(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            serde_json::Value::Object(entries.into_iter().collect())
        }
        serde_json::Value::Array(items) => items.into_iter().map(sorted).collect(),
        other => other,
    }
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("tojson: {}", message.into()),
    )
}

/// `tojson(value, indent=None, separators=None, sort_keys=False, ensure_ascii=False)`.
pub fn tojson(value: Value, options: Kwargs) -> std::result::Result<Value, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(v) if v.is_none() => None,
        Some(v) => Some(match v.as_str() {
            Some(text) => text.to_owned(),
            // A wide indent at depth 128 would make a large text out of a small one.
            None => " ".repeat(
                usize::try_from(v)
                    .map_err(|_| bad("indent is no number"))?
                    .min(16),
            ),
        }),
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    if options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false)
    {
        return Err(bad("ensure_ascii=true is not supported"));
    }
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(bad("separators must be a pair")),
        None => (
            if indent.is_some() { "," } else { ", " }.into(),
            ": ".into(),
        ),
    };
    let mut plain = serde_json::to_value(&value).map_err(|e| bad(e.to_string()))?;
    if sort {
        plain = sorted(plain);
    }
    let formatter = PythonFormatter {
        item,
        key,
        indent,
        depth: 0,
        empty: true,
    };
    let mut out = Vec::new();
    plain
        .serialize(&mut serde_json::Serializer::with_formatter(
            &mut out, formatter,
        ))
        .map_err(|e| bad(e.to_string()))?;
    String::from_utf8(out)
        .map(Value::from)
        .map_err(|e| bad(e.to_string()))
}
