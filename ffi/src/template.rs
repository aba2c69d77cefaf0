//! Chat templates: minijinja set up as transformers sets up jinja2.

use crate::failure::{invalid, limit, Failure};
use crate::guard::Marker;
use crate::tokenizer::Tokenizer;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{escape_formatter, AutoEscape, Environment, Error, ErrorKind, Output, State};
use serde_json::{Map, Value};
use std::io;

/// One unit pays for an instruction or 64 bytes: at most ~128 MB and about a second.
const FUEL: u64 = 2_000_000;
const MAX_SOURCE: usize = 1 << 20;
const NAME: &str = "chat_template";

pub struct Template {
    environment: Environment<'static>,
    source: String,
}

pub struct RenderInput<'a> {
    pub messages: &'a [u8],
    pub client: &'a [u8],
    pub server: &'a [u8],
    pub max_output: usize,
}

pub struct Rendered {
    pub text: String,
    pub breaks: Vec<usize>,
}

/// What a template passed to raise_exception.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Raised {}

/// Collects up to a number of bytes, then fails.
struct Capped {
    text: Vec<u8>,
    max: usize,
    full: bool,
}

impl io::Write for &mut Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.max {
            self.full = true;
            return Err(io::Error::other("output limit"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Template {
    pub fn compile(source: &str) -> Result<Template, Failure> {
        if source.len() > MAX_SOURCE {
            return Err(limit(format!(
                "the chat template has {} bytes, the limit is {MAX_SOURCE}",
                source.len()
            )));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(invalid)?;
        environment.set_syntax(syntax);
        environment.set_debug(false);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(100);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(print_as_python);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", crate::pyjson::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(invalid)?;
        Ok(Template {
            environment,
            source: source.to_owned(),
        })
    }

    pub fn render(&self, tokenizer: &Tokenizer, input: &RenderInput) -> Result<Rendered, Failure> {
        let mut messages: Value = parse("messages", input.messages)?;
        if !messages.is_array() {
            return Err(invalid("messages: expected a JSON array"));
        }
        let mut client = Value::Object(object("client variables", input.client)?);
        let server = Value::Object(object("server variables", input.server)?);
        let marker = Marker::new(
            &tokenizer.special_text,
            &[&self.source],
            &[&messages, &client, &server],
        )?;
        marker.messages(&mut messages);
        // transformers passes None for these, and templates ask `is not none`.
        let mut variables =
            Map::from_iter(["tools", "documents"].map(|name| (name.to_owned(), Value::Null)));
        for (name, value) in client.as_object_mut().into_iter().flatten() {
            marker.value(value);
            variables.insert(name.clone(), value.take());
        }
        variables.insert("messages".into(), messages);
        if let Value::Object(map) = server {
            variables.extend(map);
        }
        let text = self.run(variables, input.max_output, &marker)?;
        let (text, breaks) = marker.unmark(&text);
        Ok(Rendered { text, breaks })
    }

    fn run(
        &self,
        variables: Map<String, Value>,
        max_output: usize,
        marker: &Marker,
    ) -> Result<String, Failure> {
        let mut out = Capped {
            text: Vec::new(),
            max: max_output,
            full: false,
        };
        let result = self.environment.get_template(NAME).and_then(|template| {
            let context = minijinja::Value::from(Serde(&variables));
            template.render_captured_to(context, &mut out).map(|_| ())
        });
        if out.full {
            return Err(limit(format!(
                "the chat template printed more than {max_output} bytes"
            )));
        }
        if let Err(error) = result {
            let mut failure = failure_of(&error);
            failure.message = marker.unmark(&failure.message).0;
            return Err(failure);
        }
        String::from_utf8(out.text).map_err(invalid)
    }
}

fn failure_of(error: &Error) -> Failure {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(e) = cause {
        if let Some(raised) = e.downcast_ref::<Raised>() {
            return invalid(raised);
        }
        if let Some(inner) = e.downcast_ref::<Error>() {
            if inner.kind() == ErrorKind::OutOfFuel {
                return limit("the chat template does too much work (out of fuel)");
            }
        }
        cause = e.source();
    }
    invalid(error)
}

fn parse(what: &str, json: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(json).map_err(|e| invalid(format!("{what}: {e}")))
}

fn object(what: &str, json: &[u8]) -> Result<Map<String, Value>, Failure> {
    match parse(what, json)? {
        Value::Object(map) => Ok(map),
        _ => Err(invalid(format!("{what}: expected a JSON object"))),
    }
}

fn print_as_python(
    out: &mut Output,
    state: &mut State,
    value: &minijinja::Value,
) -> Result<(), Error> {
    let word = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(Error::from)
}

fn raise_exception(message: String) -> Result<minijinja::Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// `datetime.now().strftime(format)`, as transformers gives to templates.
fn strftime_now(format: String) -> Result<String, Error> {
    let bad = || {
        Error::new(
            ErrorKind::InvalidOperation,
            "strftime_now: the format is not usable",
        )
    };
    let format = std::ffi::CString::new(format).map_err(|_| bad())?;
    let mut buffer = [0u8; 512];
    // SAFETY: `tm` is filled by localtime_r, the format ends in NUL, and strftime writes at most
    // the length given.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut tm: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut tm).is_null() {
            return Err(bad());
        }
        libc::strftime(
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            format.as_ptr(),
            &tm,
        )
    };
    String::from_utf8(buffer[..length].to_vec()).map_err(|_| bad())
}
