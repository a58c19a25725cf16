//! Closed sets of which each member has a word: the one that is stored, sent and shown.

/// Defines such an enum, with `ALL` members in their order, `as_str`, `from_word` and `Display`.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$about])* $variant,)+
        }

        #[allow(dead_code, reason = "not every set is listed, read and shown")]
        impl $name {
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|member| member.as_str() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

/// Defines such an enum of which each member has a sentence too, and what to do about it.
macro_rules! explained {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $word:literal, $means:literal, $advice:literal;)+ }) => {
        words!($(#[$meta])* $name { $(#[doc = $means] $variant = $word,)+ });

        impl $name {
            #[cfg_attr(not(test), allow(dead_code, reason = "the generated document reads it"))]
            pub(crate) fn about(self) -> [&'static str; 2] {
                match self { $(Self::$variant => [$means, $advice]),+ }
            }
        }
    };
}

pub(crate) use {explained, words};
