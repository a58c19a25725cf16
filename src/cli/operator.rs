//! The operator, as the host shows them, and their reasons.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::cli::{exit, stop};
use crate::model::Operator;

/// Returns who runs this command: the process's user, the one who called it by sudo, and the host.
pub(crate) fn operator() -> Operator {
    let own = fs::metadata("/proc/self").map(|process| process.uid()).ok();
    let named = own.and_then(|uid| name_of(&fs::read_to_string("/etc/passwd").ok()?, uid));
    let user = named.or_else(|| set("USER")).or_else(|| set("LOGNAME"));
    Operator {
        user: user.or_else(|| own.map(|uid| format!("uid {uid}"))).unwrap_or_else(|| "an operator".to_owned()),
        sudo_user: set("SUDO_USER"),
        host: hostname::get().unwrap_or_default().to_string_lossy().into_owned(),
    }
}

/// Longer reasons of operators are refused: they go into a header.
const LONGEST_REASON_BYTES: usize = 512;

pub(crate) fn check_reason(reason: &str) -> anyhow::Result<()> {
    if reason.len() > LONGEST_REASON_BYTES {
        let fault = format!("the reason is longer than {LONGEST_REASON_BYTES} bytes; make it shorter");
        return Err(stop(exit::USAGE, fault));
    }
    Ok(())
}

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns the name of a user in the system's list of users, whose lines are `name:password:uid:…`.
fn name_of(users: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let named = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then_some(name)
    });
    named.filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number_in_the_list_of_the_system() {
        let users = "root:x:0:0::/root:/bin/sh\nbroken\n:x:7:7::/:\nann:x:1000:1000:Ann,,,:/home/ann:/bin/sh\n";
        for (uid, name) in [(0, Some("root")), (1000, Some("ann")), (100, None), (7, None)] {
            assert_eq!(name_of(users, uid).as_deref(), name, "{uid}");
        }
    }
}
