//! What verbs are really given, and which files are taken.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use shoal_plan::settings::{File, Kind, Origin, SETTINGS, parse};

use super::*;
use crate::run_dir::tests::Dir;

/// Every verb, `token create` too, with its command.
fn verbs() -> Vec<(String, clap::Command)> {
    fn walk(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
        for inner in command.get_subcommands() {
            let name = format!("{name} {}", inner.get_name()).trim().to_owned();
            walk(inner, &name, found);
            found.push((name, inner.clone()));
        }
    }
    let mut found = Vec::new();
    walk(&Cli::command(), "", &mut found);
    found
}

/// Two values that the kind takes and one that it does not.
fn examples(kind: Kind) -> ([&'static str; 2], Option<&'static str>) {
    match kind {
        Kind::Text | Kind::Secret | Kind::Path | Kind::Cluster | Kind::Texts => {
            (["/a", "/b"], None)
        }
        Kind::Socket => (["10.0.0.1:1", "[::1]:2"], Some("7400")),
        Kind::Address => (["10.0.0.1", "::1"], Some("attic")),
        Kind::Port => (["1", "65535"], Some("65536")),
        Kind::Threads => (["1", "1024"], Some("many")),
        Kind::Time => (["90s", "7d"], Some("1.5h")),
        Kind::Store => (["etcd://a:1", "etcd://b:2/lab"], Some("http://a:1")),
        Kind::Devices => (["cpu", "cuda:0,2"], Some("gpu")),
        Kind::Choice(words) => ([words[0], words[1]], Some("xml")),
    }
}

/// What a verb cannot do without, beside its settings.
fn required(command: &clap::Command, but: &str) -> Vec<String> {
    let is_needed = |arg: &&clap::Arg| {
        // Some are only wanted where another is absent, and clap does not say so.
        arg.is_required_set() || (arg.is_positional() && !arg.is_last_set())
    };
    let needed = command.get_arguments().filter(is_needed);
    let words = needed.filter(|arg| arg.get_long() != Some(but)).flat_map(|arg| {
        let value = (arg.get_possible_values().first())
            .map_or_else(|| "1".to_owned(), |first| first.get_name().to_owned());
        let n = arg.get_num_args().map_or(1, |range| range.min_values().max(1));
        let values = std::iter::repeat_n(value, n);
        arg.get_long().map(|long| format!("--{long}")).into_iter().chain(values).collect::<Vec<_>>()
    });
    words.collect()
}

fn file(setting: &Setting, value: &str) -> Option<File> {
    let quoted = format!("{value:?}");
    let nested = setting.key.rsplit('.').fold(quoted, |inner, part| format!("{{{part}: {inner}}}"));
    let text = format!("apiVersion: shoal/v1\nkind: Config\nspec: {nested}\n");
    parse("file", &text, Path::new("/"), &|_| None).unwrap()
}

/// What each verb that takes a setting is really given, by clap, from each layer.
#[test]
fn every_verb_is_given_the_setting_of_the_nearest_layer() {
    let mut n_taken = std::collections::BTreeMap::new();
    for (name, _) in verbs() {
        let words: Vec<OsString> =
            std::iter::once("shoal").chain(name.split(' ')).map(OsString::from).collect();
        for setting in taken_by(&words) {
            *n_taken.entry(setting.key).or_insert(0) += 1;
            let flag = setting.flag.unwrap();
            let ([one, other], wrong) = examples(setting.kind);
            let layers = |variable: bool, project: bool| {
                let environment = move |name: &str| {
                    (variable && name == setting.variable).then(|| one.to_owned())
                };
                let project = (project && setting.in_files).then(|| file(setting, other)).flatten();
                Layers::new(&environment, project, None)
            };
            let parse = |layers: &Layers, more: &[&str]| {
                let documented = command::documented(Cli::command());
                let path = command::verb_of(&documented, &words);
                let taken = command::settings_of(&documented, &path);
                let command = command::with_values(documented, &path, &taken, layers).unwrap();
                let mut all = words.clone();
                all.extend(required(&command_of(&name), flag).into_iter().map(OsString::from));
                all.extend(more.iter().map(OsString::from));
                command.try_get_matches_from(all)
            };
            let given = |layers: &Layers, more: &[&str]| -> Vec<String> {
                let matches = parse(layers, more).unwrap_or_else(|error| panic!("{name}: {error}"));
                let mut inner = &matches;
                while let Some((_, next)) = inner.subcommand() {
                    inner = next;
                }
                let command = command_of(&name);
                let arg = command.get_arguments().find(|arg| arg.get_long() == Some(flag)).unwrap();
                let raw = inner.get_raw(arg.get_id().as_str()).into_iter().flatten();
                raw.map(|value| value.to_string_lossy().into_owned()).collect()
            };
            let said = format!("--{flag}={other}");
            assert_eq!(given(&layers(true, true), &[&said]), [other], "{name} {}", setting.key);
            assert_eq!(given(&layers(true, true), &[]), [one], "{name} {}", setting.key);
            if setting.in_files {
                assert_eq!(given(&layers(false, true), &[]), [other], "{name} {}", setting.key);
            }
            // clap and the table agree on what is no value.
            if let Some(wrong) = wrong {
                assert!(!setting.kind.takes(wrong), "{}", setting.key);
                let wrong = format!("--{flag}={wrong}");
                assert!(parse(&layers(false, false), &[&wrong]).is_err(), "{name} {wrong}");
            }
            let help = command_of(&name).render_long_help().to_string();
            assert!(help.contains(&format!("[env: {}]", setting.variable)), "{name}: {help}");
        }
    }
    for setting in SETTINGS.iter().filter(|setting| setting.flag.is_some()) {
        let least = setting.verbs.len().max(1);
        assert!(n_taken.get(setting.key).is_some_and(|n| *n >= least), "{}", setting.key);
    }
}

fn command_of(name: &str) -> clap::Command {
    let documented = command::documented(Cli::command());
    name.split(' ').fold(documented, |at, part| at.find_subcommand(part).unwrap().clone())
}

/// Fixed defaults stand twice, in the table and in clap's words: here they meet.
#[test]
fn a_default_is_the_same_in_the_table_and_in_every_verb() {
    for (name, command) in verbs() {
        let words: Vec<OsString> =
            std::iter::once("shoal").chain(name.split(' ')).map(OsString::from).collect();
        for setting in taken_by(&words) {
            let Otherwise::Fixed(value) = setting.default else { continue };
            let arg = command.get_arguments().find(|arg| arg.get_long() == setting.flag);
            let arg = arg.unwrap_or_else(|| panic!("{name} has --{:?}", setting.flag));
            let words = arg.get_possible_values();
            if words.is_empty() || words.iter().any(|word| word.get_name() == value) {
                assert_eq!(arg.get_default_values(), [value], "{name} {}", setting.key);
            }
        }
    }
}

#[test]
fn a_form_that_a_verb_does_not_have_is_as_if_nobody_had_said_it() {
    let layers =
        Layers::new(&|name| (name == "SHOAL_OUTPUT").then(|| "yaml".to_owned()), None, None);
    let output = |words: &[&str]| {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let command = command::documented(Cli::command());
        let path = command::verb_of(&command, &words);
        let taken = command::settings_of(&command, &path);
        let command = command::with_values(command, &path, &taken, &layers).unwrap();
        let matches = command.try_get_matches_from(&words).unwrap();
        let (_, inner) = matches.subcommand().unwrap();
        inner.get_raw("output").unwrap().next().unwrap().to_string_lossy().into_owned()
    };
    assert_eq!(output(&["shoal", "ps"]), "yaml");
    assert_eq!(output(&["shoal", "events"]), "table");
    let export: Vec<OsString> = ["shoal", "export"].map(OsString::from).to_vec();
    assert!(taken_by(&export).is_empty(), "its --output is a directory");
}

#[test]
fn the_nearest_file_upwards_counts_if_nobody_else_may_have_written_it() {
    let dir = Dir::new("settings-files");
    let deep = dir.0.join("a/b");
    fs::create_dir_all(&deep).unwrap();
    let user = rustix::process::geteuid().as_raw();
    let write = |path: &Path, kind: &str, spec: &str| {
        fs::write(path, format!("apiVersion: shoal/v1\nkind: {kind}\nspec: {spec}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    };
    let cluster = || {
        let found = files::nearest(&deep, user)?.map(|file| file.values["cluster"].0[0].clone());
        Ok::<_, Stopped>(found)
    };
    let (far, near) = (dir.0.join("shoal.yaml"), dir.0.join("a/shoal.yaml"));
    write(&far, "Config", "{cluster: far}");
    assert_eq!(cluster().unwrap().as_deref(), Some("far"));
    write(&near, "Config", "{cluster: near}");
    assert_eq!(cluster().unwrap().as_deref(), Some("near"));
    // A manifest of this name is none of ours.
    write(&near, "Training", "{}");
    assert_eq!(cluster().unwrap().as_deref(), Some("far"));
    fs::set_permissions(&far, fs::Permissions::from_mode(0o666)).unwrap();
    let text = cluster().unwrap_err().text().unwrap();
    assert!(text.contains("everybody may write to it (mode 666)"), "{text}");
    fs::set_permissions(&far, fs::Permissions::from_mode(0o644)).unwrap();
    let owner = fs::metadata(&far).unwrap();
    let stranger = std::os::unix::fs::MetadataExt::uid(&owner).wrapping_add(1);
    if std::os::unix::fs::MetadataExt::uid(&owner) != 0 {
        let text = files::nearest(&deep, stranger).unwrap_err().text().unwrap();
        assert!(text.contains("and not to you"), "{text}");
    }
    fs::write(&near, [0xff, 0xfe]).unwrap();
    let text = cluster().unwrap_err().text().unwrap();
    assert!(
        text.contains("cannot read the settings in") && text.contains("a/shoal.yaml"),
        "{text}"
    );
    fs::remove_file(&near).unwrap();
    fs::create_dir(&near).unwrap();
    let text = cluster().unwrap_err().text().unwrap();
    assert!(text.contains("cannot read the settings in"), "{text}");
}

#[test]
fn what_launch_starts_takes_nothing_from_elsewhere() {
    for verb in ["host", "conduct"] {
        let words: Vec<OsString> = ["shoal", verb].map(OsString::from).to_vec();
        assert!(taken_by(&words).is_empty());
        let command = Cli::command();
        assert!(command::is_inner(&command, &command::verb_of(&command, &words)));
    }
    assert_eq!(Layers::default().find(named("cluster"), None).unwrap().origin, Origin::Default);
}
