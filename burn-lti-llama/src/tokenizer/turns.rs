//! Which part of a conversation's text its assistant says, whatever template wrote it.
//!
//! A template may mark it with `{% generation %}`. Without marks, a turn begins where the conversation before it
//! ends that is to be answered, and ends where the conversation ends that has it: what the template makes of both
//! is, as a rule, how its text of the whole begins. Where it is not, because a template writes earlier turns in
//! another way than the last, the turn is found by what changes if its words are others.

use std::ops::Range;

use super::chat::{ChatError, ChatTemplate, MARKS, Message};

/// The role whose turns are looked for.
const ASSISTANT: &str = "assistant";
/// Words that are in no conversation.
const NO_WORDS: &str = "\u{fdd2}\u{fdd3}";

/// A conversation as text.
pub(super) struct Turns {
    pub(super) text: String,
    /// What the assistant says, in bytes of the text.
    pub(super) said: Vec<Range<usize>>,
    /// Whether the template has marked exactly that. Else what ends a turn is somewhere at its end.
    pub(super) are_marked: bool,
}

impl ChatTemplate {
    /// The text of a conversation, and the assistant's turns in it.
    ///
    /// # Errors
    ///
    /// As [`render`](Self::render), and [`ChatError::Turns`]: a turn cannot be told from the rest.
    pub(super) fn turns(&self, messages: &[Message]) -> Result<Turns, ChatError> {
        if self.has_marks() {
            let marked = self.render_marked(messages)?;
            return Ok(unmarked(&marked));
        }
        let text = self.render(messages, false)?;
        let turns = messages.iter().enumerate();
        let turns = turns.filter(|(_, message)| message.role() == Some(ASSISTANT));
        let said = turns.map(|(index, _)| {
            let turn = self.turn(messages, index, &text);
            turn.ok_or_else(|| self.no_turn(index + 1))
        });
        Ok(Turns {
            said: said.collect::<Result<_, _>>()?,
            text,
            are_marked: false,
        })
    }

    /// Where the message with this index is in the text of all; `None` if that cannot be told.
    fn turn(&self, messages: &[Message], index: usize, text: &str) -> Option<Range<usize>> {
        let begins = |messages: &[Message], answer| {
            let before = self.render(messages, answer).ok()?;
            text.starts_with(&before).then_some(before.len())
        };
        let (before, after) = messages.split_at(index + 1);
        // A template that knows no beginning of an answer says the same with it and without.
        let begin = begins(&messages[..index], true);
        let begin = match begin == begins(&messages[..index], false) {
            true => self
                .words(messages, index, text)
                .map(|words| words.start)
                .or(begin),
            false => begin,
        };
        let end = match after {
            [] => Some(text.len()),
            _ => begins(before, false),
        };
        let range = match (begin, end) {
            (Some(begin), Some(end)) => begin..end,
            (begin, _) => {
                let words = self.words(messages, index, text)?;
                begin.unwrap_or(words.start)..words.end
            }
        };
        (range.start <= range.end).then_some(range)
    }

    /// Where its words are: what differs if they are others.
    fn words(&self, messages: &[Message], index: usize, text: &str) -> Option<Range<usize>> {
        let mut others = messages.to_vec();
        others[index] = others[index].with_content(NO_WORDS);
        let other = self.render(&others, false).ok()?;
        let (before, after) = other.split_once(NO_WORDS)?;
        let end = text.len().checked_sub(after.len())?;
        let fits = text.starts_with(before) && text.ends_with(after) && before.len() <= end;
        fits.then_some(before.len()..end)
    }
}

/// The text without its marks, and what was between them.
fn unmarked(marked: &str) -> Turns {
    let (mut text, mut said, mut begin) = (String::new(), Vec::new(), 0);
    for character in marked.chars() {
        match MARKS.iter().position(|mark| *mark == character) {
            Some(0) => begin = text.len(),
            Some(_) => said.push(begin..text.len()),
            None => text.push(character),
        }
    }
    Turns {
        text,
        said,
        are_marked: true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture;
    use super::super::{Tokenizer, TokenizerError};
    use super::*;

    const CHAT_ML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    const LLAMA_3: &str = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
    /// Of which earlier turns lose what the last one has, as of Qwen3.
    const THINKS: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' and loop.last %}{{ 'think\n' }}{% endif %}{{ message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    const MARKED: &str = "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\n' }}\n    {%- if message.role == 'assistant' %}\n        {%- generation %}\n            {{- message.content + '<|im_end|>' }}\n        {%- endgeneration %}\n        {{- '\n' }}\n    {%- else %}\n        {{- message.content + '<|im_end|>\n' }}\n    {%- endif %}\n{%- endfor %}";
    /// Says how long all is before it says it.
    const COUNTS: &str = "{{ messages|length }}{% for message in messages %}{{ message.content|length }} {{ message.content }} {% endfor %}";

    fn tokenizer(template: &str) -> Tokenizer {
        let special = [
            "<unk>",
            "<s>",
            "</s>",
            "<|im_start|>",
            "<|im_end|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ];
        let words = [
            "system",
            "user",
            "assistant",
            "think",
            "one",
            "two",
            "three",
            "four",
            "\n",
            " ",
        ];
        let vocab = special.iter().chain(&words).zip(0..);
        let vocab: serde_json::Map<String, serde_json::Value> = vocab
            .map(|(token, id)| ((*token).to_owned(), json!(id)))
            .collect();
        let added = special.iter().zip(0..).map(|(content, id)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        });
        let json = json!({
            "version": "1.0",
            "added_tokens": added.collect::<Vec<_>>(),
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"\w+|\s"}, "behavior": "Isolated", "invert": false},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        });
        let settings = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
        let folder = fixture::folder(&json, &settings);
        Tokenizer::from_dir(folder.path(), None, &[]).unwrap()
    }

    fn messages() -> Vec<Message> {
        [
            ("system", "one"),
            ("user", "two"),
            ("assistant", "three four"),
            ("user", "one two"),
            ("assistant", "four"),
        ]
        .map(|(role, content)| Message::new(role, content))
        .to_vec()
    }

    /// All tokens, those that count in brackets.
    fn counted(template: &str, messages: &[Message]) -> Result<String, TokenizerError> {
        let tokenizer = tokenizer(template);
        let (ids, counts) = tokenizer.encode_turns(messages)?;
        // The loss has no say in which tokens there are.
        let text = tokenizer.chat().unwrap().render(messages, false)?;
        assert_eq!(ids, tokenizer.encode_as_it_is(&text)?);
        let tokens = ids.iter().zip(counts).map(|(id, counts)| {
            let token = tokenizer
                .decode_as_it_is(&[*id])
                .unwrap()
                .replace('\n', "/")
                .replace(' ', "_");
            if counts { format!("[{token}]") } else { token }
        });
        Ok(tokens.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn words_and_what_ends_them_count_in_templates_of_every_kind() {
        assert_eq!(
            counted(CHAT_ML, &messages()).unwrap(),
            "<|im_start|> system / one <|im_end|> / <|im_start|> user / two <|im_end|> / \
             <|im_start|> assistant / [three] [_] [four] [<|im_end|>] / \
             <|im_start|> user / one _ two <|im_end|> / <|im_start|> assistant / [four] [<|im_end|>] /"
        );
        let header = |role| format!("<|start_header_id|> {role} <|end_header_id|> / /");
        let [system, user, assistant] = ["system", "user", "assistant"].map(header);
        assert_eq!(
            counted(LLAMA_3, &messages()).unwrap(),
            format!(
                "<s> {system} one <|eot_id|> {user} two <|eot_id|> {assistant} [three] [_] [four] [<|eot_id|>] \
                 {user} one _ two <|eot_id|> {assistant} [four] [<|eot_id|>]"
            )
        );
        // It knows no beginning of an answer.
        let (without, _) = CHAT_ML.split_once("{% if").expect("an end");
        assert_eq!(
            counted(without, &messages()).unwrap(),
            counted(CHAT_ML, &messages()).unwrap()
        );
        // What the template marks is what counts, and its text is that without marks.
        assert_eq!(
            counted(MARKED, &messages()).unwrap(),
            counted(CHAT_ML, &messages()).unwrap()
        );
    }

    #[test]
    fn a_turn_that_is_written_otherwise_when_more_follow_is_found_by_its_words() {
        assert_eq!(
            counted(THINKS, &messages()[1..]).unwrap(),
            "<|im_start|> user / two <|im_end|> / <|im_start|> assistant / [three] [_] [four] [<|im_end|>] / \
             <|im_start|> user / one _ two <|im_end|> / \
             <|im_start|> assistant / [think] [/] [four] [<|im_end|>] /"
        );
    }

    #[test]
    fn a_turn_that_cannot_be_told_from_the_rest_names_the_template_and_the_way_out() {
        let error = counted(COUNTS, &messages()).unwrap_err().to_string();
        for part in [
            "tokenizer_config.json",
            "message 3",
            "{% generation %}",
            "data.loss_on",
        ] {
            assert!(error.contains(part), "{error}");
        }
        // Nobody answers.
        let asked = &messages()[..2];
        assert!(!counted(COUNTS, asked).unwrap().contains('['));
    }
}
