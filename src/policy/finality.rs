//! The finality rule: the blocks that can no longer go away.

use crate::model::BlockNumber;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalityRule {
    /// Counts it once this many blocks stand on top of it.
    Depth(u64),
    /// Counts it once the node calls it `safe`.
    Safe,
    /// Counts it once the node calls it `finalized`.
    Finalized,
}

/// Returns the highest final block, given the newest one and, for the rules by tag, the block that the node gives for
/// the tag.
pub fn highest_final(rule: FinalityRule, head: BlockNumber, tagged: Option<BlockNumber>) -> Option<BlockNumber> {
    match rule {
        FinalityRule::Depth(depth) => head.0.checked_sub(depth).map(BlockNumber),
        FinalityRule::Safe | FinalityRule::Finalized => tagged.map(|block| block.min(head)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_final_with_the_asked_number_on_top() {
        let final_at = |depth, head| highest_final(FinalityRule::Depth(depth), BlockNumber(head), None);
        assert_eq!(final_at(2, 10), Some(BlockNumber(8)));
        assert_eq!(final_at(0, 10), Some(BlockNumber(10)));
        assert_eq!(final_at(2, 1), None);
    }

    #[test]
    fn a_tag_decides_but_never_beyond_the_head() {
        let head = BlockNumber(10);
        assert_eq!(highest_final(FinalityRule::Finalized, head, Some(BlockNumber(4))), Some(BlockNumber(4)));
        assert_eq!(highest_final(FinalityRule::Safe, head, Some(BlockNumber(11))), Some(head));
        assert_eq!(highest_final(FinalityRule::Safe, head, None), None);
    }
}
