//! Precedence, files and mistakes of settings.

use std::path::Path;

use super::*;

/// Values that a setting takes, no two alike.
fn examples(setting: &Setting) -> [&'static str; 4] {
    match setting.kind {
        Kind::Text | Kind::Secret | Kind::Path | Kind::Cluster | Kind::Texts => {
            ["/a", "/b", "/c", "/d"]
        }
        Kind::Socket => ["10.0.0.1:1", "10.0.0.1:2", "[::1]:3", "0.0.0.0:4"],
        Kind::Address => ["10.0.0.1", "10.0.0.2", "::1", "10.0.0.4"],
        Kind::Port => ["1", "2", "3", "65535"],
        Kind::Threads => ["1", "2", "3", "1024"],
        Kind::Time => ["1s", "2m", "3h", "4d"],
        Kind::Store => ["etcd://a:1", "etcd://b:2", "etcd://c:3,d:4", "etcd://e:5/lab"],
        Kind::Devices => ["cpu", "cuda", "cuda:0,2", "auto"],
        // With three words at most, those of neighbouring layers differ still.
        Kind::Choice(words) => [words[0], words[1], words[0], words[1]],
    }
}

fn one(value: &str) -> Values {
    vec![value.to_owned()]
}

fn file(name: &str, setting: &Setting, value: &str) -> Option<File> {
    let mut spec = format!("{value:?}");
    for part in setting.key.rsplit('.') {
        spec = format!("{{{part}: {spec}}}");
    }
    let text = format!("apiVersion: shoal/v1\nkind: Config\nspec: {spec}\n");
    let text = if setting.kind == Kind::Port || setting.kind == Kind::Threads {
        text.replace('"', "")
    } else {
        text
    };
    parse(name, &text, Path::new("/"), &|_| None).unwrap_or_else(|error| panic!("{text}{error}"))
}

#[test]
fn whoever_is_nearer_to_the_command_line_counts_of_every_setting_and_every_set_of_layers() {
    for setting in SETTINGS {
        let [flag, variable, project, user] = examples(setting);
        for layers in 0..16_u32 {
            let has = |bit: u32| layers & (1 << bit) != 0;
            let in_files = |bit| setting.in_files && has(bit);
            let said =
                |name: &str| (has(1) && name == setting.variable).then(|| variable.to_owned());
            let below = Layers::new(
                &said,
                in_files(2).then(|| file("p", setting, project)).flatten(),
                in_files(3).then(|| file("u", setting, user)).flatten(),
            );
            let flagged = setting.flag.filter(|_| has(0));
            let found = below.find(setting, flagged.map(|_| one(flag))).unwrap();
            let wanted = if let Some(name) = flagged {
                (Some(one(flag)), Origin::Flag(name))
            } else if has(1) {
                (Some(one(variable)), Origin::Variable(setting.variable))
            } else if in_files(2) {
                (Some(one(project)), Origin::Project("p".to_owned(), 3))
            } else if in_files(3) {
                (Some(one(user)), Origin::User("u".to_owned(), 3))
            } else {
                let value = match setting.default {
                    Otherwise::Fixed(value) => Some(one(value)),
                    Otherwise::Found(_) => None,
                };
                (value, Origin::Default)
            };
            assert_eq!((found.values, found.origin), wanted, "{} {layers:04b}", setting.key);
        }
    }
}

#[test]
fn a_variable_that_is_empty_is_not_set_and_one_that_is_wrong_is_named() {
    let layers = |value: &'static str| Layers::new(&move |_| Some(value.to_owned()), None, None);
    let found = layers("").find(named("cluster"), None).unwrap();
    assert_eq!(found.origin, Origin::Default);
    for (key, value, wanted) in [
        (
            "coordinator.listen",
            "7400",
            "SHOAL_LISTEN: wanted an address and a port, such as 127.0.0.1:7400, got `7400`",
        ),
        ("output", "xml", "SHOAL_OUTPUT: wanted table, json, yaml, got `xml`"),
        ("threads", "0", "SHOAL_THREADS: wanted a whole number from 1 to 1024, got `0`"),
        ("rig.first_port", "70000", "SHOAL_FIRST_PORT: wanted a port, 0 to 65535, got `70000`"),
        (
            "coordinator.certificate_life",
            "1.5h",
            "SHOAL_CERTIFICATE_LIFE: wanted a number and s, m, h or d, such as 24h, got `1.5h`",
        ),
        (
            "rig.devices",
            "gpu",
            "SHOAL_DEVICES: wanted auto, cpu, cuda, or some GPUs, such as cuda:0,2, got `gpu`",
        ),
        ("rig.yield_to", "a,,b", "SHOAL_YIELD_TO: wanted text, or a list of texts, got `a,,b`"),
    ] {
        assert_eq!(layers(value).find(named(key), None).unwrap_err().to_string(), wanted);
    }
    let list = layers("a, /b").find(named("rig.yield_to"), None).unwrap();
    assert_eq!(list.values.unwrap(), ["a", "/b"]);
}

fn read(text: &str) -> Result<Option<File>, String> {
    let home = |name: &str| (name == "HOME").then(|| "/home/ann".to_owned());
    parse("shoal.yaml", text, Path::new("/src/job"), &home).map_err(|error| error.to_string())
}

#[test]
fn a_file_says_sections_paths_from_where_it_is_and_lists() {
    let text = "apiVersion: shoal/v1\nkind: Config\nspec:\n  cluster: home\n  cache: cache\n  rig:\n    \
                state: ~/rig\n    yield_to:\n      - game\n      - /run/busy\n";
    let file = read(text).unwrap().unwrap();
    let value = |key: &str| file.values[key].clone();
    assert_eq!(value("cluster"), (one("home"), 4));
    assert_eq!(value("cache"), (one("/src/job/cache"), 5));
    assert_eq!(value("rig.state"), (one("/home/ann/rig"), 7));
    assert_eq!(value("rig.yield_to"), (vec!["game".to_owned(), "/run/busy".to_owned()], 8));
    let directory = text.replace("home\n", "./c\n");
    assert_eq!(read(&directory).unwrap().unwrap().values["cluster"].0, ["/src/job/./c"]);
    let empty = read("apiVersion: shoal/v1\nkind: Config\nspec: {}\n").unwrap().unwrap();
    assert!(empty.values.is_empty());
    for other in ["Training", "Fleet"] {
        assert_eq!(read(&format!("apiVersion: shoal/v1\nkind: {other}\n")), Ok(None));
    }
}

#[test]
fn mistakes_in_a_file_are_shown_where_they_are_and_all_at_once() {
    let head = "apiVersion: shoal/v1\nkind: Config\nspec:\n";
    let unknown = read(&format!("{head}  clutser: home\n  threads: many\n")).unwrap_err();
    assert_eq!(
        unknown,
        "shoal.yaml:4:3: spec.clutser: unknown key `clutser`\n  |\n4 |   clutser: home\n  |   ^^^^^^^\n  \
         = help: did you mean `spec.cluster`?\n\nshoal.yaml:5:12: spec.threads: wanted a whole number from 1 to 1024, \
         got the text `many`\n  |\n5 |   threads: many\n  |            ^^^^"
    );
    for (spec, wanted) in [
        ("  listen: 0.0.0.0:1\n", "it belongs into another section: `spec.coordinator.listen`"),
        ("  rig: {jion: a}\n", "did you mean `spec.rig.join`?"),
        (
            "  rig: attic\n",
            "spec.rig: wanted a section of `key: value` lines, got the text `attic`",
        ),
        (
            "  coordinator: {listen: 7400}\n",
            "wanted an address and a port, such as 127.0.0.1:7400, got 7400",
        ),
        ("  output: [json]\n", "spec.output: wanted table, json, yaml, got a list"),
        ("  output:\n", "shoal.yaml:4:9: spec.output: wanted table, json, yaml, got nothing"),
        ("  SHOAL_TOKEN: a\n", "unknown key `SHOAL_TOKEN`"),
        ("  login: {name: a}\n", "unknown key `login`"),
        ("  cluster: a\n  cluster: b\n", "the key `cluster` is given twice"),
        ("  threads: 1.5\n", "wanted a whole number from 1 to 1024, got 1.5"),
    ] {
        let got = read(&format!("{head}{spec}")).expect_err(spec);
        assert!(got.contains(wanted), "{spec}: {got}");
    }
    for (text, wanted) in [
        ("cluster: home\n", "unknown key `cluster`"),
        ("apiVersion: shoal/v1\nkind: Confg\n", "kind: wanted Config, got `Confg`"),
        ("apiVersion: shoal/v1\nkind: Config\n", "spec: this key is missing"),
        ("", "it is empty"),
        ("a: [", "not valid YAML"),
    ] {
        let got = read(text).expect_err(text);
        assert!(got.contains(wanted), "{text}: {got}");
    }
}

#[test]
fn no_two_settings_share_a_key_and_what_is_secret_is_in_no_file() {
    for (at, setting) in SETTINGS.iter().enumerate() {
        assert!(SETTINGS[..at].iter().all(|other| other.key != setting.key), "{}", setting.key);
        assert!(setting.kind != Kind::Secret || !setting.in_files, "{}", setting.key);
        if let Otherwise::Fixed(value) = setting.default {
            assert!(setting.kind.takes(value), "{}", setting.key);
        }
    }
}
