//! [`ChatTemplate`]: how an instruct model is talked to.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as JinjaValue};
use minijinja::{Environment, Error as JinjaError, ErrorKind, State};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::source::Source;

/// The file that holds the template; it goes before what `tokenizer_config.json` says.
const FILE: &str = "chat_template.jinja";
/// Around what a template marks as an assistant's, where that is asked for: characters that are in no text.
pub(super) const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];
/// Whether what a template marks is to be marked in its text.
const MARK: &str = "mark_generation";
/// The longest template.
const MOST_BYTES: u64 = 1 << 20;
/// The template in the environment.
const NAME: &str = "chat";
/// Steps of a rendering, of which one also pays for 64 bytes of text: a template is somebody else's program, and
/// may neither go on for ever nor fill the memory. A long conversation takes some ten thousand.
const FUEL: u64 = 1 << 22;
/// The most blanks by which `tojson` indents; Python's has no end.
const MAX_INDENT: usize = 64;

/// What somebody says in a conversation: `role`, `content`, and whatever else a template reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message(Map<String, Value>);

impl Message {
    /// What `role`, such as `user`, says.
    pub fn new(role: &str, content: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("role".into(), json!(role));
        fields.insert("content".into(), json!(content));
        Self(fields)
    }

    /// Bytes of what is said.
    pub(crate) fn size(&self) -> usize {
        self.0
            .get("content")
            .and_then(Value::as_str)
            .map_or(0, str::len)
    }

    /// Who says it.
    pub(crate) fn role(&self) -> Option<&str> {
        self.0.get("role")?.as_str()
    }

    /// The message with other words.
    pub(super) fn with_content(&self, content: &str) -> Self {
        let mut fields = self.0.clone();
        fields.insert("content".into(), json!(content));
        Self(fields)
    }

    /// A message that was read, if it has a role.
    pub(crate) fn of(value: &Value) -> Option<Self> {
        let fields = value.as_object()?;
        fields.get("role")?.as_str()?;
        Some(Self(fields.clone()))
    }
}

/// The template of an instruct model: messages become the text that it was trained on.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Whether it marks what an assistant says.
    has_marks: bool,
    text: String,
    /// Where it is from, which errors name.
    file: PathBuf,
    bos_token: String,
    eos_token: String,
}

/// Why a chat template could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template's file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The template is broken, or refuses the messages.
    #[error("the chat template in {file} fails: correct it, or the messages")]
    Template {
        /// Where the template is from.
        file: PathBuf,
        /// Where and why.
        source: JinjaError,
    },
    /// What an assistant says cannot be told from the rest.
    #[error(
        "the chat template in {file} writes message {message} of a conversation in another way when more follow, so \
         that the assistant's words cannot be told from the rest: mark them there with {{% generation %}}, or set \
         data.loss_on = \"all\""
    )]
    Turns {
        /// Where the template is from.
        file: PathBuf,
        /// Which message, from 1.
        message: usize,
    },
    /// There is no template.
    #[error(
        "the model has no chat template ({FILE}, or `chat_template` in tokenizer_config.json): it is no \
         instruct model, or its template was not saved; give text without messages"
    )]
    None,
}

impl ChatTemplate {
    /// The template of a Hugging Face folder: `chat_template.jinja`, or what `tokenizer_config.json` says, which
    /// is one template or several with names, of which it is `default`.
    pub(super) fn of_source(
        source: &Source<'_>,
        setting: Option<&Value>,
        [bos_token, eos_token]: [String; 2],
    ) -> Result<Option<Self>, ChatError> {
        let file = source.path(FILE);
        let own = source.read(Path::new(FILE), MOST_BYTES).and_then(|bytes| {
            let text = bytes.map(String::from_utf8).transpose();
            text.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        });
        let (text, file) = match own {
            Ok(Some(text)) => (Some(text), file),
            Ok(None) => {
                let named = |all: &Vec<Value>| {
                    let mut all = all.iter();
                    let default = all.find(|it| it["name"] == "default");
                    default
                        .and_then(|it| it["template"].as_str())
                        .map(str::to_owned)
                };
                let text = match setting {
                    Some(Value::String(text)) => Some(text.clone()),
                    Some(Value::Array(all)) => named(all),
                    _ => None,
                };
                (text, source.path("tokenizer_config.json"))
            }
            Err(source) => return Err(ChatError::Read { file, source }),
        };
        let template = |text: String| {
            let has_marks = GENERATION.is_match(&text);
            let environment = environment(text.clone()).map_err(|source| ChatError::Template {
                file: file.clone(),
                source,
            })?;
            Ok(Self {
                environment,
                has_marks,
                text,
                file: file.clone(),
                bos_token,
                eos_token,
            })
        };
        text.map(template).transpose()
    }

    /// The template itself.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text of a conversation, as transformers' `apply_chat_template` makes it, special tokens included; with
    /// the beginning of an answer, if it is to be answered.
    ///
    /// # Errors
    ///
    /// [`ChatError::Template`]: the template refuses the messages, or does what is not known here.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<String, ChatError> {
        self.render_with(messages, answer, false)
    }

    /// The text of a conversation with [`MARKS`] around what the template marks.
    pub(super) fn render_marked(&self, messages: &[Message]) -> Result<String, ChatError> {
        self.render_with(messages, false, true)
    }

    /// Whether the template marks what an assistant says.
    pub(super) const fn has_marks(&self) -> bool {
        self.has_marks
    }

    /// The error of a message that cannot be told from the rest.
    pub(super) fn no_turn(&self, message: usize) -> ChatError {
        ChatError::Turns {
            file: self.file.clone(),
            message,
        }
    }

    fn render_with(
        &self,
        messages: &[Message],
        answer: bool,
        marks: bool,
    ) -> Result<String, ChatError> {
        let context = json!({
            MARK: marks,
            "messages": messages,
            "add_generation_prompt": answer,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
        });
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render(Serde(context)));
        rendered.map_err(|source| ChatError::Template {
            file: self.file.clone(),
            source,
        })
    }
}

/// transformers' mark of what an assistant says, which changes nothing in the text.
static GENERATION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
        .unwrap_or_else(|_| unreachable!("the pattern is one"))
});

/// As transformers sets Jinja up for chat templates.
fn environment(text: String) -> Result<Environment<'static>, JinjaError> {
    let text = GENERATION.replace_all(&text, |found: &regex::Captures<'_>| {
        let what = if found.get(2).is_some() {
            "endfilter"
        } else {
            "filter generation"
        };
        format!("{}{what}{}", &found[1], &found[3])
    });
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<JinjaValue, _> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.add_filter("generation", marked);
    environment.add_template_owned(NAME, text.into_owned())?;
    Ok(environment)
}

/// What a template marks, with marks around it where they are asked for.
fn marked(state: &State<'_, '_>, text: String) -> String {
    let [begin, end] = MARKS;
    match state.lookup(MARK).is_some_and(|marks| marks.is_true()) {
        true => format!("{begin}{text}{end}"),
        false => text,
    }
}

/// As Python's `datetime.now().strftime`.
fn strftime_now(format: String) -> Result<String, JinjaError> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(&format)).map_err(|_| {
        let reason = format!("{format:?} is no format of a date");
        JinjaError::new(ErrorKind::InvalidOperation, reason)
    })?;
    Ok(text)
}

/// As Python's `json.dumps`: spaces after commas and colons, nothing escaped for HTML.
fn to_json(value: JinjaValue, options: Kwargs) -> Result<String, JinjaError> {
    let indent = options.get::<Option<usize>>("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        options.get::<Option<JinjaValue>>(ignored)?;
    }
    options.assert_all_used()?;
    let failed =
        |error: serde_json::Error| JinjaError::new(ErrorKind::BadSerialization, error.to_string());
    let mut text = Vec::new();
    match indent {
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut text, Spaced);
            value.serialize(&mut serializer).map_err(failed)?;
        }
        Some(indent) if indent > MAX_INDENT => {
            let reason = format!("tojson(indent={indent}) is beyond {MAX_INDENT}");
            return Err(JinjaError::new(ErrorKind::InvalidOperation, reason));
        }
        Some(indent) => {
            let indent = " ".repeat(indent);
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut text, pretty);
            value.serialize(&mut serializer).map_err(failed)?;
        }
    }
    String::from_utf8(text)
        .map_err(|error| JinjaError::new(ErrorKind::BadSerialization, error.to_string()))
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        to: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { to.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }
}
