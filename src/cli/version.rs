//! The text of `--version`: the version, the commit that it was built from, and the features in it.

use std::sync::LazyLock;

/// Set where packages are built (scripts/package.sh); any other build does not know its commit.
const COMMIT: Option<&str> = option_env!("CHAINWRITER_COMMIT");
/// The day of that commit, which is the same for every build of it.
const COMMITTED: Option<&str> = option_env!("CHAINWRITER_COMMIT_DATE");

static LONG: LazyLock<String> = LazyLock::new(|| {
    let commit = match (COMMIT, COMMITTED) {
        (Some(commit), Some(date)) => format!("{commit} of {date}"),
        _ => "unknown, since no package was built".to_owned(),
    };
    let features = if cfg!(feature = "otlp") { "otlp" } else { "none" };
    format!("{}\ncommit: {commit}\nfeatures: {features}", env!("CARGO_PKG_VERSION"))
});

pub(super) fn long() -> &'static str {
    LONG.as_str()
}
