//! Serialises tables of numbers sparsely: only the numbers that are not 0, each with its index.
//!
//! A distribution has about a thousand buckets, nearly all of them empty.

use core::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserializer, Serializer};

/// Writes the pairs of index and number.
pub(crate) fn serialize<S: Serializer, const N: usize>(table: &[u64; N], serializer: S) -> Result<S::Ok, S::Error> {
    let filled = || table.iter().enumerate().filter(|&(_, &number)| number != 0);
    let mut pairs = serializer.serialize_seq(Some(filled().count()))?;
    for (index, number) in filled() {
        pairs.serialize_element(&(index as u64, number))?;
    }
    pairs.end()
}

/// Reads the pairs. An index beyond the end of the table is an error.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u64; N], D::Error> {
    struct Pairs<const N: usize>;

    impl<'de, const N: usize> Visitor<'de> for Pairs<N> {
        type Value = [u64; N];

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(formatter, "pairs of an index below {N} and a number")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut pairs: A) -> Result<Self::Value, A::Error> {
            let mut table = [0; N];
            while let Some((index, number)) = pairs.next_element::<(u64, u64)>()? {
                let place = usize::try_from(index).ok().and_then(|index| table.get_mut(index));
                *place.ok_or_else(|| A::Error::custom("an index beyond the end of its table"))? = number;
            }
            Ok(table)
        }
    }

    deserializer.deserialize_seq(Pairs)
}
