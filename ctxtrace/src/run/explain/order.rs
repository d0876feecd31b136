//! Random order of the runs in each block: each case runs once in every block, so that a period in which the machine is slow affects
//! all cases.

/// Generates the order of one block after another.
#[derive(Clone, Debug)]
pub(super) struct Order(fastrand::Rng);

impl Order {
    /// Makes a generator. The same seed gives the same orders.
    pub(super) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Returns the numbers below `count`, each once, in random order. All orders are equally likely.
    pub(super) fn block(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        self.0.shuffle(&mut order);
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_once_a_block_and_anywhere_in_it() {
        let mut order = Order::new(1);
        let mut first = [0; 4];
        for _ in 0..4_000 {
            let block = order.block(4);
            let mut sorted = block.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
            first[block[0]] += 1;
        }
        assert!(first.iter().all(|&times| (850..1_150).contains(&times)), "{first:?}");
    }
}
