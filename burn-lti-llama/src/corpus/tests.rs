//! Tests of the written corpus.

use serde_json::json;

use super::*;
use crate::data::read_documents;
use crate::model::fixture::{broken_model, model};
use crate::tokenizer::fixture::{self, BOS, CAT, EOS, THE};

/// As many as the fixture's words, with the special ones.
const VOCAB: usize = 5;

/// The fixture's tokenizer, and that BOS is 1.
fn tokenizer() -> Tokenizer {
    let folder = fixture::folder(&fixture::json(), &json!({"eos_token": "</s>"}));
    Tokenizer::from_dir(folder.path(), Some(BOS), &[]).unwrap()
}

fn order(tokens: usize) -> CorpusOrder {
    CorpusOrder {
        temperature: 1.5,
        top_p: 1.0,
        document_tokens: NonZeroUsize::new(12),
        ..CorpusOrder::new(NonZeroUsize::new(tokens).unwrap())
    }
}

fn sample(order: &CorpusOrder) -> Result<Corpus, CorpusError> {
    sample_corpus(&model(VOCAB), &tokenizer(), order, |_, _| {})
}

#[test]
fn the_same_seed_gives_the_same_documents_whatever_the_batch() {
    let of = |batch_size, seed| {
        let batch_size = NonZeroUsize::new(batch_size);
        sample(&CorpusOrder {
            batch_size,
            seed,
            ..order(300)
        })
        .unwrap()
    };
    let one = of(1, 3);
    assert!(one.documents.len() > 10);
    // 0 leaves it to the corpus.
    for batch_size in [2, 3, 7, 16, 64, 0] {
        assert_eq!(of(batch_size, 3), one);
    }
    assert_ne!(of(7, 4), one);
}

#[test]
fn documents_end_with_eos_before_bos_or_at_their_full_length() {
    let corpus = sample(&order(2000)).unwrap();
    let mut endings = [0; 3];
    for Document { tokens, text, .. } in &corpus.documents {
        let (first, rest) = tokens.split_first().unwrap();
        let (last, amid) = rest.split_last().unwrap();
        assert_eq!(*first, BOS);
        assert!(!amid.contains(&EOS) && !rest.contains(&BOS), "{tokens:?}");
        let said = if *last == EOS { amid } else { rest };
        assert_eq!(*text, tokenizer().decode_as_it_is(said).unwrap());
        match (*last, tokens.len()) {
            (EOS, 2..=12) => endings[0] += 1,
            (_, 12) => endings[1] += 1,
            (_, 2..12) => endings[2] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(endings.iter().all(|count| *count > 0), "{endings:?}");
}

#[test]
fn there_are_as_many_tokens_as_asked_for_and_no_document_in_vain() {
    for tokens in [1, 11, 12, 13, 500] {
        let mut told = Vec::new();
        let done = |tokens, all| told.push((tokens, all));
        let corpus = sample_corpus(&model(VOCAB), &tokenizer(), &order(tokens), done);
        let corpus = corpus.unwrap();
        let found = corpus.num_tokens();
        let last = corpus.documents.last().unwrap().tokens.len();
        assert!((tokens..tokens + last).contains(&found));
        assert!(told.iter().all(|(done, all)| done <= all && *all == tokens));
        assert!(told.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        assert_eq!(told.last(), Some(&(tokens, tokens)));
    }
}

#[test]
fn a_prompt_begins_every_document() {
    let prompt = Some("cat the".to_owned());
    let corpus = sample(&CorpusOrder {
        prompt,
        ..order(200)
    });
    let corpus = corpus.unwrap();
    for document in &corpus.documents {
        assert_eq!(document.tokens[..3], [BOS, CAT, THE]);
        assert!(document.text.starts_with("cat the"), "{}", document.text);
    }
    assert_eq!(corpus.blank, 0);
}

#[test]
fn as_many_are_drawn_at_once_as_there_is_memory_for() {
    // 2 layers of 2 heads of 4, keys and values of 4 bytes: 128 bytes a token.
    let rooms = |document_tokens, batch_size| {
        let order = CorpusOrder {
            batch_size: NonZeroUsize::new(batch_size),
            ..order(50)
        };
        order.rooms(model(VOCAB).config(), document_tokens).get()
    };
    assert_eq!(rooms(12, 0), 128);
    assert_eq!(rooms(12, 1000), 1000);
    assert_eq!(rooms((1 << 30) / 128 / 77, 0), 77);
    assert_eq!(rooms(1 << 30, 0), 1);
}

#[test]
fn a_written_corpus_is_read_back() {
    let corpus = sample(&order(200)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("corpus.jsonl");
    corpus.write(&file).unwrap();
    let texts = corpus.documents.iter().map(|document| &document.text);
    let read = read_documents(&file, None).unwrap().into_iter();
    assert!(
        texts
            .map(|text| crate::data::Document::Text(text.clone()))
            .eq(read)
    );

    let error = corpus.write(&folder.path().join("corpus.txt")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("corpus.txt does not end in .jsonl"),
        "{error}"
    );
    let nowhere = folder.path().join("nowhere/corpus.jsonl");
    let error = corpus.write(&nowhere).unwrap_err();
    assert!(matches!(error, CorpusError::Write(_)), "{error}");
    let tokens = corpus.clone().into_tokens();
    assert_eq!(tokens.len(), corpus.documents.len());
    assert_eq!(tokens.concat().len(), corpus.num_tokens());
}

#[test]
fn a_model_that_says_nothing_comes_to_an_end() {
    // Every token but the words ends a text.
    let folder = fixture::folder(&fixture::json(), &json!({"eos_token": "</s>"}));
    let all_end = Tokenizer::from_dir(folder.path(), Some(BOS), &[0, THE, CAT]).unwrap();
    let mut blank = fixture::json();
    blank["model"]["vocab"] = json!({"<unk>": 0, "<s>": BOS, "</s>": EOS});
    let folder = fixture::folder(&blank, &json!({"eos_token": "</s>"}));
    let silent = Tokenizer::from_dir(folder.path(), Some(BOS), &[]).unwrap();
    let corpus = sample_corpus(&model(VOCAB), &silent, &order(50), |_, _| {});
    let text = corpus.unwrap_err().to_string();
    assert!(
        text.contains(&format!("ended {BLANK_ON_END} documents on end")),
        "{text}"
    );
    let corpus = sample_corpus(&model(VOCAB), &all_end, &order(50), |_, _| {}).unwrap();
    let words = corpus
        .documents
        .iter()
        .map(|document| document.tokens.len());
    assert!(words.clone().all(|length| length == 2));
    assert!(corpus.blank > 0);
}

#[test]
fn orders_that_cannot_be_carried_out_are_errors() {
    let refused = |order: CorpusOrder| {
        let error = order.check(model(VOCAB).config(), &tokenizer());
        let error = error.unwrap_err();
        assert_eq!(sample(&order).unwrap_err().to_string(), error.to_string());
        error
    };
    let document_tokens = |tokens| CorpusOrder {
        document_tokens: NonZeroUsize::new(tokens),
        ..order(50)
    };
    for (tokens, parts) in [
        (49, ["documents of 49 tokens", "at most 48"]),
        (1, ["begins with 1 tokens", "may have 1: "]),
    ] {
        let text = refused(document_tokens(tokens)).to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    for (temperature, top_p) in [(0.0, 1.0), (1.0, 0.0)] {
        let order = CorpusOrder {
            temperature,
            top_p,
            ..order(50)
        };
        assert!(matches!(refused(order), CorpusError::Generation(_)));
    }
}

#[test]
fn what_no_text_can_begin_with_is_an_error() {
    let check = |tokenizer: &Tokenizer, prompt: Option<&str>| {
        let prompt = prompt.map(str::to_owned);
        let order = CorpusOrder {
            prompt,
            ..order(50)
        };
        order.check(model(VOCAB).config(), tokenizer)
    };
    let mut plain = fixture::json();
    plain["post_processor"] = fixture::post_processor(&["$A"]);
    let folder = fixture::folder(&plain, &json!({"eos_token": "</s>"}));
    let without_bos = Tokenizer::from_dir(folder.path(), None, &[]).unwrap();
    let error = check(&without_bos, None).unwrap_err();
    assert_eq!(error.to_string(), NO_BOS);
    check(&without_bos, Some("the")).unwrap();
    let error = check(&without_bos, Some("")).unwrap_err();
    assert_eq!(error.to_string(), EMPTY_PROMPT);
    let failing = fixture::without_unknown_token();
    let error = check(&failing, Some("dog")).unwrap_err();
    assert!(matches!(error, CorpusError::Tokenizer(_)));
}

#[test]
fn a_model_that_computes_no_numbers_is_an_error() {
    let corpus = sample_corpus(&broken_model(VOCAB), &tokenizer(), &order(50), |_, _| {});
    assert!(matches!(corpus.unwrap_err(), CorpusError::Generation(_)));
}

/// What a prompt says of special tokens is in the text that is read again, BOS once.
#[test]
fn special_tokens_of_the_prompt_stay_in_the_text() {
    for (prompt, begins) in [("<s> cat </s> the", "<s> cat </s> the"), ("cat", "cat")] {
        let order = CorpusOrder {
            prompt: Some(prompt.to_owned()),
            ..order(40)
        };
        for Document { tokens, text, .. } in sample(&order).unwrap().documents {
            assert!(text.starts_with(begins), "{text}");
            let mut again = tokenizer().encode_document(&text).unwrap();
            if tokens.last() != Some(&EOS) {
                again.pop(); // of a document that was cut
            }
            assert_eq!(again, tokens);
        }
    }
}
