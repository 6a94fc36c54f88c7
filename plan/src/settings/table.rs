//! The table of settings.

use super::{Kind, Otherwise, Setting};

use Otherwise::{Fixed, Found};

/// What the rest of a setting usually is.
const fn setting(
    key: &'static str,
    kind: Kind,
    (flag, verbs): (Option<&'static str>, &'static [&'static str]),
    variable: &'static str,
    default: Otherwise,
    meaning: &'static str,
) -> Setting {
    Setting { key, flag, verbs, variable, in_files: true, kind, default, meaning }
}

/// One that only the environment has.
const fn variable(
    name: &'static str,
    kind: Kind,
    default: Otherwise,
    meaning: &'static str,
) -> Setting {
    let (flag, verbs): (_, &[&str]) = (None, &[]);
    Setting { key: name, flag, verbs, variable: name, in_files: false, kind, default, meaning }
}

const COORDINATOR: &[&str] = &["coordinator"];
const RIG: &[&str] = &["worker", "doctor"];

/// All of them, in the order of documents.
pub static SETTINGS: &[Setting] = &[
    setting(
        "cluster",
        Kind::Cluster,
        (Some("cluster"), &[]),
        "SHOAL_CLUSTER",
        Fixed("default"),
        "Which cluster, and with it who you are there: a name below `~/.config/shoal/clusters`, or a directory.",
    ),
    setting(
        "output",
        Kind::Choice(&["table", "json", "yaml"]),
        (Some("output"), &[]),
        "SHOAL_OUTPUT",
        Fixed("table"),
        "How results are shown. A verb that has no such form goes on as if nobody had said anything.",
    ),
    setting(
        "log_format",
        Kind::Choice(&["text", "json"]),
        (Some("log-format"), &[]),
        "SHOAL_LOG_FORMAT",
        Fixed("text"),
        "Form of the lines in logs.",
    ),
    setting(
        "threads",
        Kind::Threads,
        (Some("threads"), &[]),
        "SHOAL_THREADS",
        Found("one for each core; of a rig as the job says"),
        "Compute threads. `launch` takes them from its manifest.",
    ),
    setting(
        "cache",
        Kind::Path,
        (None, &[]),
        "SHOAL_CACHE",
        Found("~/.cache/shoal"),
        "Where downloaded text is kept.",
    ),
    setting(
        "coordinator.listen",
        Kind::Socket,
        (Some("listen"), COORDINATOR),
        "SHOAL_LISTEN",
        Fixed("127.0.0.1:7400"),
        "Where rigs and people reach a cluster's coordinator.",
    ),
    setting(
        "coordinator.state",
        Kind::Path,
        (Some("state"), COORDINATOR),
        "SHOAL_STATE",
        Found("~/.local/state/shoal/cluster"),
        "Everything of the cluster: the authority's key, the store, a directory for each job.",
    ),
    setting(
        "coordinator.name",
        Kind::Text,
        (Some("name"), COORDINATOR),
        "SHOAL_CLUSTER_NAME",
        Fixed("shoal"),
        "What the cluster is called, in certificates. Of the first start.",
    ),
    setting(
        "coordinator.certificate_life",
        Kind::Time,
        (Some("certificate-life"), COORDINATOR),
        "SHOAL_CERTIFICATE_LIFE",
        Fixed("24h"),
        "How long rigs' certificates are good.",
    ),
    setting(
        "coordinator.advertise",
        Kind::Text,
        (Some("advertise"), COORDINATOR),
        "SHOAL_ADDRESS",
        Found("as coordinator.listen"),
        "Where rigs, people and other coordinators are told to reach it: HOST:PORT.",
    ),
    setting(
        "coordinator.store",
        Kind::Store,
        (Some("store"), COORDINATOR),
        "SHOAL_STORE",
        Found("a file in coordinator.state"),
        "Where the state is kept: `etcd://HOST:PORT[,HOST:PORT...][/PREFIX]`.",
    ),
    setting(
        "coordinator.store_ca",
        Kind::Path,
        (Some("store-ca"), COORDINATOR),
        "SHOAL_STORE_CA",
        Found("nothing: in clear"),
        "etcd is spoken to by TLS, and its certificate is of this authority (PEM).",
    ),
    setting(
        "coordinator.store_cert",
        Kind::Path,
        (Some("store-cert"), COORDINATOR),
        "SHOAL_STORE_CERT",
        Found("nothing"),
        "What is shown to etcd (PEM).",
    ),
    setting(
        "coordinator.store_key",
        Kind::Path,
        (Some("store-key"), COORDINATOR),
        "SHOAL_STORE_KEY",
        Found("nothing"),
        "Its key (PEM), for its user alone.",
    ),
    setting(
        "coordinator.metrics_port",
        Kind::Port,
        (Some("metrics-port"), COORDINATOR),
        "SHOAL_METRICS_PORT",
        Found("none: no metrics are served"),
        "Where on its loopback a cluster's metrics are, and a list of them for Prometheus at `/sd`; 0: any free port.",
    ),
    setting(
        "rig.join",
        Kind::Text,
        (Some("join"), RIG),
        "SHOAL_JOIN",
        Found("the cluster that this machine has joined"),
        "A rig's coordinator, HOST:PORT.",
    ),
    setting(
        "rig.token_file",
        Kind::Path,
        (Some("token-file"), RIG),
        "SHOAL_TOKEN_FILE",
        Found("none"),
        "A file that holds the token of the first start.",
    ),
    setting(
        "rig.name",
        Kind::Text,
        (Some("name"), RIG),
        "SHOAL_NAME",
        Found("the machine's name"),
        "What the rig is called. Of the first start.",
    ),
    setting(
        "rig.advertise",
        Kind::Address,
        (Some("advertise"), RIG),
        "SHOAL_ADVERTISE",
        Found("the address from which it reaches the coordinator"),
        "Where other rigs reach this one.",
    ),
    setting(
        "rig.first_port",
        Kind::Port,
        (Some("first-port"), RIG),
        "SHOAL_FIRST_PORT",
        Fixed("0"),
        "The first of three ports on which they do (data, snapshots, probes); 0: any free ones.",
    ),
    setting(
        "rig.state",
        Kind::Path,
        (Some("state"), RIG),
        "SHOAL_STATE",
        Found("~/.local/state/shoal/rig"),
        "Everything of the rig.",
    ),
    setting(
        "rig.devices",
        Kind::Devices,
        (Some("devices"), &["worker"]),
        "SHOAL_DEVICES",
        Fixed("auto"),
        "What jobs may compute on there.",
    ),
    setting(
        "rig.yield_to",
        Kind::Texts,
        (Some("yield-to"), &["worker"]),
        "SHOAL_YIELD_TO",
        Found("nothing"),
        "Give way while a program of this name runs, or a file is there (anything with a slash). Commas in the variable.",
    ),
    Setting {
        in_files: false,
        ..setting(
            "login.name",
            Kind::Text,
            (Some("name"), &["login"]),
            "USER",
            Found("none"),
            "What you are called in a cluster.",
        )
    },
    variable("SHOAL_TOKEN", Kind::Secret, Found("none"), "A token, where no file holds it."),
    variable(
        "SHOAL_CPU",
        Kind::Text,
        Found("the widest that this CPU has"),
        "The instruction set of matrix products: `avx512bf16`, `avx512`, `avx2`, `neon` or `portable`.",
    ),
    variable("RUST_LOG", Kind::Text, Fixed("info"), "What logs hold."),
    variable("NO_COLOR", Kind::Text, Found("colours on a terminal"), "Set: no colours."),
    variable(
        "HF_TOKEN",
        Kind::Secret,
        Found("none"),
        "For files of the Hugging Face Hub that need a login; sent to huggingface.co alone.",
    ),
    variable(
        "AWS_ACCESS_KEY_ID",
        Kind::Secret,
        Found("none"),
        "Of the object store that a manifest names; so are the next ones.",
    ),
    variable("AWS_SECRET_ACCESS_KEY", Kind::Secret, Found("none"), "Its secret."),
    variable(
        "AWS_SESSION_TOKEN",
        Kind::Secret,
        Found("none"),
        "Of keys that are good for a while.",
    ),
    variable(
        "AWS_ENDPOINT_URL_S3",
        Kind::Text,
        Found("AWS_ENDPOINT_URL"),
        "Where the store is, if it is not Amazon's.",
    ),
    variable("AWS_ENDPOINT_URL", Kind::Text, Found("Amazon's"), "The same, of all services."),
    variable("AWS_REGION", Kind::Text, Found("AWS_DEFAULT_REGION"), "The store's region."),
    variable("AWS_DEFAULT_REGION", Kind::Text, Found("none"), "The same, of lower rank."),
];

/// The setting of a key.
///
/// # Panics
/// There is none: a slip in our own code.
pub fn named(key: &str) -> &'static Setting {
    let found = SETTINGS.iter().find(|setting| setting.key == key);
    found.unwrap_or_else(|| panic!("{key} is in the table of settings"))
}
