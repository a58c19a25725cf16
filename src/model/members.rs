//! Values of the requests of one transaction: the first, whose row in the journal names the transaction, and the
//! others of its batch.

/// One value for each request of a transaction, in the order of the batch; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members<T> {
    pub first: T,
    pub others: Vec<T>,
}

impl<T> Members<T> {
    /// Returns the members of a transaction that is for one request alone.
    pub fn one(first: T) -> Self {
        Self { first, others: Vec::new() }
    }

    pub fn from_vec(mut all: Vec<T>) -> Option<Self> {
        if all.is_empty() {
            return None;
        }
        let others = all.split_off(1);
        Some(Self { first: all.pop()?, others })
    }

    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    pub fn is_batch(&self) -> bool {
        !self.others.is_empty()
    }

    pub fn map<U>(self, mut change: impl FnMut(T) -> U) -> Members<U> {
        Members { first: change(self.first), others: self.others.into_iter().map(change).collect() }
    }

    pub fn map_ref<U>(&self, mut derive: impl FnMut(&T) -> U) -> Members<U> {
        Members { first: derive(&self.first), others: self.others.iter().map(derive).collect() }
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl<T> IntoIterator for Members<T> {
    type Item = T;
    type IntoIter = std::iter::Chain<std::iter::Once<T>, std::vec::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self.first).chain(self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_batch_is_kept() {
        let members = Members::from_vec(vec!["a", "b", "c"]).unwrap();
        assert_eq!((members.first, members.count(), members.is_batch()), ("a", 3, true));
        assert_eq!(members.iter().copied().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(members.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(Members::from_vec(Vec::<u8>::new()), None);
        assert!(!Members::one(1).is_batch());
    }
}
