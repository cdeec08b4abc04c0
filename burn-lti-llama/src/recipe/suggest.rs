//! The nearest name to a mistyped one.

/// Names less alike than this (Jaro-Winkler, 0 to 1) are no typing mistake.
const ALIKE: f64 = 0.7;

/// A name that nothing here has, with those that there are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownName {
    pub(crate) name: String,
    pub(crate) known: Vec<String>,
}

impl UnknownName {
    /// Reads serde's "unknown field `a`, expected one of `b`, `c`" (`what` is `field`), so that
    /// the names accepted are listed nowhere but in the structs.
    pub(crate) fn from_message(message: &str, what: &str) -> Option<Self> {
        let names = message.strip_prefix("unknown ")?.strip_prefix(what)?;
        let mut quoted = names.split('`').skip(1).step_by(2).map(str::to_owned);
        Some(Self {
            name: quoted.next()?,
            known: quoted.collect(),
        })
    }

    /// The nearest name that there is, or all `what` that there are.
    pub(crate) fn way_out(&self, what: &str) -> String {
        match self.nearest() {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("the {what} are {}", self.known.join(", ")),
        }
    }

    /// The accepted name that looks most like it.
    fn nearest(&self) -> Option<String> {
        self.known
            .iter()
            .map(|known| (strsim::jaro_winkler(known, &self.name), known))
            .filter(|(likeness, _)| *likeness >= ALIKE)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, known)| known.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_messages_of_serde() {
        let read = |message| UnknownName::from_message(message, "field");
        let unknown = |name: &str, known: &[&str]| {
            Some(UnknownName {
                name: name.into(),
                known: known.iter().map(|&name| name.into()).collect(),
            })
        };
        assert_eq!(
            read("unknown field `a`, expected `b`"),
            unknown("a", &["b"])
        );
        assert_eq!(
            read("unknown field `a`, expected `b` or `c`"),
            unknown("a", &["b", "c"])
        );
        let three = "unknown field `a`, expected one of `b`, `c`, `d`";
        assert_eq!(read(three), unknown("a", &["b", "c", "d"]));
        assert_eq!(
            read("unknown field `a`, there are no fields"),
            unknown("a", &[])
        );
        assert_eq!(read("unknown variant `a`, expected `b`"), None);
        assert_eq!(read("missing field `a`"), None);
    }

    #[test]
    fn suggests_only_what_is_alike() {
        let nearest = |name: &str| {
            let known = ["steps", "batch_size", "learning_rate", "seed"]
                .map(String::from)
                .into();
            UnknownName {
                name: name.into(),
                known,
            }
            .nearest()
        };
        assert_eq!(nearest("step").as_deref(), Some("steps"));
        assert_eq!(nearest("batchsize").as_deref(), Some("batch_size"));
        assert_eq!(nearest("lr").as_deref(), Some("learning_rate"));
        assert_eq!(nearest("zzz"), None);
    }
}
