//! What the fakes at the seams of broker, chain and signer must have in common with the real parts: each test runs against
//! both. The journal's set is `journal::contract`.

mod broker;
mod chain;
mod signer;

/// One test for the fake and one for the real part from each function of a set. Where the real part is missing, its test
/// says so and returns, as `tests/support` does.
macro_rules! both {
    ($fake:expr, $real:expr, $($name:ident),*) => {
        mod fake {
            use super::*;
            $(
                #[tokio::test(start_paused = true)]
                async fn $name() {
                    super::$name(&mut $fake.await).await;
                }
            )*
        }

        mod real {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    if crate::support::services_are_here() {
                        super::$name(&mut $real.await).await;
                    }
                }
            )*
        }
    };
}
pub(super) use both;
