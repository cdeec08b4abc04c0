//! Generic types that turn out to be one type.

use std::any::Any;

/// `value` under another name of its type, as a backend's primitive by the backend's own; back if it is of
/// another type.
pub(super) fn cast<X: 'static, Y: 'static>(value: X) -> Result<Y, X> {
    let mut value = Some(value);
    let any: &mut dyn Any = &mut value;
    match any.downcast_mut::<Option<Y>>().and_then(Option::take) {
        Some(value) => Ok(value),
        None => Err(value.unwrap_or_else(|| unreachable!("only a cast takes it"))),
    }
}

/// `value` under another name of its type, where both names were found to be of one.
pub(super) fn same<X: 'static, Y: 'static>(value: X) -> Y {
    cast(value).unwrap_or_else(|_| unreachable!("the types were compared before"))
}

#[cfg(test)]
mod tests {
    use super::cast;

    #[test]
    fn a_value_is_cast_to_its_own_type_alone() {
        assert_eq!(cast::<_, String>("a".to_owned()), Ok("a".to_owned()));
        assert_eq!(cast::<_, u32>("a".to_owned()), Err("a".to_owned()));
    }
}
