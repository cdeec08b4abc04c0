//! `--set section.key=value`, or `--set report=false`: changes to a recipe from the command line.

use toml::{Table, Value};

use super::RecipeError;

/// The key that is in no section.
const ALONE: &str = "report";

/// Puts `section.key=value` into the recipe's table. Whether such a key exists is left to the
/// reading of the table, which treats it like a key of the file.
pub(super) fn apply(table: &mut Table, text: &str) -> Result<(), RecipeError> {
    let malformed = || RecipeError::Override {
        text: text.to_owned(),
    };
    let (path, value) = text.split_once('=').ok_or_else(malformed)?;
    if path.trim() == ALONE {
        table.insert(ALONE.to_owned(), parse_value(value.trim()));
        return Ok(());
    }
    let (section, key) = path.trim().split_once('.').ok_or_else(malformed)?;
    let is_name = |name: &str| !name.is_empty() && !name.contains(['.', ' ']);
    if !is_name(section) || !is_name(key) {
        return Err(malformed());
    }
    let section = table
        .entry(section)
        .or_insert_with(|| Value::Table(Table::new()));
    // A section that is no table is a mistake of the file, and is reported when the file is read.
    if let Some(section) = section.as_table_mut() {
        section.insert(key.to_owned(), parse_value(value.trim()));
    }
    Ok(())
}

/// A TOML value; what is none is a string without its quotes.
fn parse_value(text: &str) -> Value {
    text.parse()
        .unwrap_or_else(|_| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_toml_or_bare_strings() {
        for (text, value) in [
            ("3e-3", Value::Float(3e-3)),
            ("[0, 2]", Value::Array(vec![0.into(), 2.into()])),
            ("lecun", "lecun".into()),
            ("\"lecun\"", "lecun".into()),
            ("../a=b", "../a=b".into()),
            ("", "".into()),
        ] {
            let mut table = Table::new();
            apply(&mut table, &format!("a.b = {text}")).unwrap();
            assert_eq!(table["a"]["b"], value);
        }
    }

    #[test]
    fn replaces_and_adds() {
        let mut table: Table = "[a]\nb = 1\nc = 2".parse().unwrap();
        apply(&mut table, "a.b=3").unwrap();
        apply(&mut table, "a.d={ e = 4 }").unwrap();
        apply(&mut table, "report = false").unwrap();
        let expected = "report = false\n[a]\nb = 3\nc = 2\nd = { e = 4 }";
        assert_eq!(table, expected.parse().unwrap());
    }

    #[test]
    fn refuses_what_names_no_section_and_key() {
        for text in [
            "", "a.b", "b=1", ".b=1", "a.=1", "a.b.c=1", "a b.c=1", "report", "repot=1",
        ] {
            let error = apply(&mut Table::new(), text).unwrap_err();
            assert!(
                matches!(error, RecipeError::Override { .. }),
                "{text}: {error}"
            );
        }
    }
}
