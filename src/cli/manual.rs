//! Manual pages: one for each command, and `chainwriter.toml(5)` for the configuration.

use clap_mangen::Man;

use crate::config::DEFAULTS;

const EXIT_CODES: &str = include_str!("../../docs/reference/exit-codes.md");
/// The page's section, and what stands at its foot.
const SOURCE: &str = concat!("chainwriter ", env!("CARGO_PKG_VERSION"));

const ENVIRONMENT: [(&str, &str); 6] = [
    ("CHAINWRITER_CONFIG", "The configuration file, as --config."),
    ("CHAINWRITER__SECTION__KEY", "A key of the configuration, which wins over the file. Two underscores each time."),
    ("CREDENTIALS_DIRECTORY", "Where relative names of secrets are searched first. systemd sets it."),
    ("RUNTIME_DIRECTORY", "The folder of the socket for reloads. systemd sets it."),
    ("OTEL_EXPORTER_OTLP_HEADERS", "Headers for the collector of traces."),
    ("NO_COLOR", "No colours in the log, if it is set and not empty."),
];

const FILES: [(&str, &str); 5] = [
    ("/etc/chainwriter/NAME.toml", "The configuration of the unit chainwriter@NAME; see chainwriter.toml(5)."),
    ("/etc/chainwriter/credentials/NAME/", "Its secrets, one a file, root's alone."),
    ("/etc/chainwriter/encrypted/NAME/", "Its secrets as systemd-creds(1) encrypts them."),
    (
        "/var/lib/chainwriter/NAME/",
        "Its journal, where that is a SQLite file. Back it up; never copy it back without `recover`.",
    ),
    ("/run/chainwriter/NAME/", "The socket for reloads, while it runs."),
];

const EXAMPLES: [(&str, &str); 5] = [
    ("chainwriter config defaults", "Prints every key of the configuration with its default."),
    ("chainwriter --unit acme doctor", "Checks all that the unit chainwriter@acme needs."),
    ("chainwriter --unit acme status order-1", "Shows what happened to the request order-1."),
    ("systemctl reload chainwriter@acme", "Takes over a changed configuration; fails if it has a fault."),
    ("chainwriter --unit acme dead list", "Lists the dead letters."),
];

/// Returns the name and the text of each page.
pub(super) fn pages(mut program: clap::Command) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    program = program.mut_args(|argument| argument.hide_env_values(true));
    program.build();
    let mut pages = vec![("chainwriter.toml.5".to_owned(), configuration().into_bytes())];
    add(&program, &mut pages)?;
    Ok(pages)
}

fn add(command: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let is_top = !name.contains('-');
    let man = Man::new(command.clone()).title(name.to_uppercase()).source(SOURCE).manual("chainwriter");
    let mut page = Vec::new();
    man.render(&mut page)?;
    if is_top {
        page.extend(section("EXIT STATUS", exit_codes()).into_bytes());
        page.extend(section("ENVIRONMENT", ENVIRONMENT.map(owned)).into_bytes());
        page.extend(section("FILES", FILES.map(owned)).into_bytes());
        page.extend(section("EXAMPLES", EXAMPLES.map(owned)).into_bytes());
    } else {
        page.extend(b".SH SEE ALSO\n\\fBchainwriter\\fR(1) has exit status, environment, files and examples.\n");
    }
    pages.push((format!("{name}.1"), page));
    for part in command.get_subcommands().filter(|part| part.get_name() != "help" && !part.is_hide_set()) {
        add(part, pages)?;
    }
    Ok(())
}

fn owned((term, text): (&str, &str)) -> (String, String) {
    (term.to_owned(), text.to_owned())
}

/// Returns the rows of the documented table.
fn exit_codes() -> Vec<(String, String)> {
    let row = |line: &str| {
        let mut cells = line.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', ""));
        let code = cells.next().filter(|code| code.parse::<u8>().is_ok())?;
        Some((code, cells.next()?))
    };
    EXIT_CODES.lines().filter_map(row).collect()
}

fn section(title: &str, rows: impl IntoIterator<Item = (String, String)>) -> String {
    let row = |(term, text): (String, String)| format!(".TP\n\\fB{}\\fR\n{}\n", escaped(&term), escaped(&text));
    format!(".SH \"{title}\"\n{}", rows.into_iter().map(row).collect::<String>())
}

/// Returns the documented file as a page.
fn configuration() -> String {
    let lines: String = DEFAULTS.lines().map(|line| escaped(line) + "\n").collect();
    format!(
        ".TH CHAINWRITER.TOML 5 \"\" \"{SOURCE}\" \"chainwriter\"\n.SH NAME\nchainwriter.toml \\- configuration of chainwriter(1)\n\
         .SH DESCRIPTION\nThis is the file of all defaults. A configuration holds only what differs from it.\n.PP\n.nf\n{lines}.fi\n\
         .SH \"SEE ALSO\"\n\\fBchainwriter\\fR(1)\n"
    )
}

/// Escapes what troff would take for its own.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Arguments;

    #[test]
    fn each_page_has_the_version_at_its_foot_and_no_empty_default() {
        let pages = pages(Arguments::command()).unwrap();
        assert!(pages.len() > 20, "{}", pages.len());
        for (name, page) in pages {
            let text = String::from_utf8(page).unwrap();
            let head = text.lines().find(|line| line.starts_with(".TH")).unwrap();
            assert!(head.contains(env!("CARGO_PKG_VERSION")), "{name}: {head}");
            assert!(!text.contains("default: ]"), "{name}");
            let has = |part: &str| text.contains(part);
            match name.as_str() {
                "chainwriter.1" => {
                    let sections = ["EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES"];
                    assert!(sections.iter().all(|title| has(&format!(".SH \"{title}\""))), "{text}");
                    assert!(has("\\fB78\\fR") && has("\\fB64\\fR"), "{text}");
                }
                "chainwriter.toml.5" => assert!(has("max_lag = 10") && has("SEE ALSO")),
                _ => assert!(has(".SH SEE ALSO"), "{name}"),
            }
        }
    }
}
