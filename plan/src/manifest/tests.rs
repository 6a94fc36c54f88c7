//! One line a manifest: what it is wrong with, and the words the person must see.

mod rope;
mod schedules;
mod sections;

use std::fmt::Write;
use std::io;
use std::path::Path;

use super::*;
use crate::job::Precision;

const HEAD: &str = "apiVersion: shoal/v1\nkind: Training\nmetadata:\n  name: one\n";
const DATA: &str = "  data:\n    files: [a.txt]\n";

/// What a released small model of this family says about itself, cut to what matters.
const CONFIG: &str = r#"{
  "architectures": ["DeepseekV3ForCausalLM"],
  "model_type": "deepseek_v3",
  "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
  "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
  "n_shared_experts": 2, "n_routed_experts": 8, "num_experts_per_tok": 2,
  "n_group": 1, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.446,
  "first_k_dense_replace": 1, "q_lora_rank": null, "kv_lora_rank": 32,
  "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
  "rms_norm_eps": 1e-05, "rope_theta": 50000, "rope_scaling": null,
  "max_position_embeddings": 512, "vocab_size": 256,
  "scoring_func": "sigmoid", "hidden_act": "silu", "torch_dtype": "bfloat16"
}"#;

/// As DeepSeek-V3's released configuration writes it, without what is rarely given.
const YARN: &str = r#"{"type": "yarn", "factor": 4, "original_max_position_embeddings": 128}"#;

/// The configuration with a section about the rotation; a section called `rope_parameters` replaces the
/// base as well.
fn scaled(name: &str, section: &str) -> String {
    let with = |config: String| {
        config.replace("\"rope_scaling\": null", &format!("\"{name}\": {section}"))
    };
    match name {
        "rope_parameters" => with(CONFIG.replace("\"rope_theta\": 50000, ", "")),
        _ => with(CONFIG.to_owned()),
    }
}

fn config_only(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some("dir/models/config.json") => Ok(CONFIG.to_owned()),
        Some("dir/five.json") => Ok(CONFIG.replace(
            "\"rope_theta\": 50000",
            "\"rope_parameters\": {\"rope_theta\": 70000.0, \"rope_type\": \"default\"}",
        )),
        Some("dir/v2.json") => Ok(CONFIG.replace("deepseek_v3", "deepseek_v2")),
        Some("dir/softmax.json") => Ok(CONFIG.replace("sigmoid", "softmax")),
        Some("dir/no-group.json") => Ok(CONFIG.replace("\"n_group\": 1, ", "")),
        Some("dir/text.json") => Ok(CONFIG.replace("\"n_group\": 1", "\"n_group\": \"one\"")),
        Some("dir/cut.json") => Ok(CONFIG[..300].to_owned()),
        Some("dir/yarn.json") => Ok(scaled("rope_scaling", YARN)),
        Some("dir/grouped.json") => Ok(CONFIG.replace("\"n_group\": 1", "\"n_group\": 3")),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn parse_with(text: &str, flags: &[&str]) -> Result<Job, ManifestError> {
    let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    parse("dir/job.yaml", text, &flags, &config_only).map(|manifest| manifest.job)
}

/// A manifest with these lines in `spec` (after valid data), which start on line 8.
fn spec(lines: &str) -> String {
    format!("{HEAD}spec:\n{DATA}{lines}")
}

#[track_caller]
fn check_text(text: &str, flags: &[&str], wanted: &[&str]) {
    let error = match parse_with(text, flags) {
        Ok(job) => panic!("accepted, want {wanted:?}: {text}\n{job:?}"),
        Err(error) => error.to_string(),
    };
    for fragment in wanted {
        assert!(error.contains(fragment), "want {fragment:?} in:\n{error}");
    }
}

#[track_caller]
fn check(lines: &str, wanted: &[&str]) {
    check_text(&spec(lines), &[], wanted);
}

#[track_caller]
fn check_flag(flag: &str, wanted: &[&str]) {
    check_text(&spec(""), &[flag], wanted);
}

#[test]
fn everything_but_the_data_has_a_default() {
    let job = parse_with(&format!("apiVersion: shoal/v1\nkind: Training\nspec:\n{DATA}"), &[]);
    let job = job.unwrap();
    assert_eq!(job.name, "job", "the file's name");
    assert_eq!(job.model, ModelConfig::tiny());
    assert_eq!(job.data.sources[0].files, ["a.txt"]);
    assert_eq!((job.data.bytes_max, job.data.heldout_fraction), (64_000_000, 0.05));
    assert_eq!(job.training, defaults::training());
    assert_eq!((job.grid, job.workers.local, job.checkpoint.every), (Grid::ONE, 1, 100));
}

#[test]
fn every_section_is_read() {
    let lines = "  model: tiny\n  training:\n    steps: 50\n    batch: 4\n    precision: f32\n    \
                 lr: 1e-3\n    clip: 2\n    seed: 18446744073709551615\n  parallelism:\n    stages: 2\n    \
                 expert_shards: 2\n  workers:\n    local: 4\n    threads: 1\n  checkpoint:\n  ";
    let job = parse_with(&spec(lines), &["metadata.name=two", "data.max_mb=0.5"]).unwrap();
    assert_eq!((job.name.as_str(), job.data.bytes_max), ("two", 500_000));
    let training = &job.training;
    assert_eq!((training.steps, training.batch, training.seed), (50, 4, u64::MAX));
    assert_eq!((training.lr, training.clip, training.precision), (1e-3, 2.0, Precision::F32));
    assert_eq!((job.grid.n_cells(), job.workers.local, job.workers.threads), (4, 4, 1));
    assert_eq!(job.division_at(1).n_microbatches(), 2);
}

#[test]
fn one_file_needs_no_list() {
    let text = format!("{HEAD}spec: {{data: {{files: a b.txt}}}}");
    assert_eq!(parse_with(&text, &[]).unwrap().data.sources[0].files, ["a b.txt"]);
}

#[test]
fn bad_yaml_is_shown_with_its_line() {
    check_text("", &[], &["dir/job.yaml: it is empty"]);
    check_text("# only\n", &[], &["it is empty"]);
    check_text("a: [1, 2\nb: 3\n", &[], &["dir/job.yaml:", "not valid YAML"]);
    check_text("a: b: c\n", &[], &["dir/job.yaml:1:", "not valid YAML", "1 | a: b: c", "^"]);
    check_text("- 1\n", &[], &["wanted a section", "got a list"]);
    check_text("3\n", &[], &["wanted a section", "got 3"]);
    check_text(&"[".repeat(1000), &[], &["not valid YAML"]);
    check_text(&"# x\n".repeat(300_000), &[], &["a manifest has at most 1048576"]);
    check("  <<: {model: tiny}\n", &["dir/job.yaml:8:3", "not valid YAML"]);
    check_text(&(spec("") + "---\na: 1\n"), &[], &["wanted one document"]);
}

#[test]
fn the_envelope_is_checked() {
    let text = |from: &str, to: &str| spec("").replace(from, to);
    check_text(
        &text("shoal/v1", "shoal/v2"),
        &[],
        &[":1:13: apiVersion: wanted shoal/v1", "`shoal/v2`"],
    );
    check_text(
        &text("Training", "Job"),
        &[],
        &["kind: wanted Training, got `Job`", "2 | kind: Job"],
    );
    check_text(&text("kind: Training\n", ""), &[], &[":1:1: kind: this key is missing"]);
    check_text(
        &text("metadata", "metdata"),
        &[],
        &["unknown key `metdata`", "did you mean `metadata`?"],
    );
    check_text(
        &text("name: one", "name: a/b"),
        &[],
        &[":4:9: metadata.name", "letters, digits", "`a/b`"],
    );
    check_text(
        &text("name: one", "name: 12"),
        &[],
        &["wanted a text, got 12", "in quotes: \"12\""],
    );
    check_text(&text("name: one", "nam: one"), &[], &["did you mean `metadata.name`?"]);
    check_text(&text("one", "\"\""), &[], &["metadata.name", "got ``"]);
}

#[test]
fn missing_data_says_how_to_give_it() {
    let wanted = ["spec.data.files: missing", "files: ["];
    check_text(&format!("{HEAD}spec:\n  model: tiny\n"), &[], &wanted);
    check_text(&format!("{HEAD}spec:\n  data:\n    max_mb: 3\n"), &[], &wanted);
    check_text(&format!("{HEAD}spec:\n  data:\n"), &[], &wanted);
    check_text(&format!("{HEAD}spec:\n  data: a.txt\n"), &[], &["spec.data", "wanted a section"]);
    check_text(&format!("{HEAD}spec:\n  data: {{files: []}}\n"), &[], &["got an empty list"]);
    check_text(&format!("{HEAD}spec:\n  data: {{files: ['']}}\n"), &[], &["got an empty text"]);
    check_text(
        &format!("{HEAD}spec:\n  data: {{files: [a, 3]}}\n"),
        &[],
        &["spec.data.files[1]: wanted a text, got 3"],
    );
    check_text(
        &format!("{HEAD}spec:\n  data: {{files: 3}}\n"),
        &[],
        &["a file pattern or a list", "got 3"],
    );
}

#[test]
fn unknown_keys_get_the_nearest_name() {
    check("  trainin:\n    steps: 3\n", &[":8:3: spec.trainin", "did you mean `spec.training`?"]);
    check(
        "  training:\n    bacth: 4\n",
        &[
            ":9:5: spec.training.bacth",
            "9 |     bacth: 4",
            "\n  |     ^^^^^\n",
            "did you mean `spec.training.batch`?",
        ],
    );
    check(
        "  steps: 50\n",
        &["unknown key `steps`", "it belongs into another section: `spec.training.steps`"],
    );
    check("  training: {stages: 2}\n", &["`spec.parallelism.stages`"]);
    check("  parallelism: {tensor: 2}\n", &["there are: stages, expert_shards, replicas"]);
    check("  model: {preset: tiny, hiden_size: 3}\n", &["did you mean `spec.model.hidden_size`?"]);
    check("  model: {prest: tiny}\n", &["did you mean `spec.model.preset`?"]);
    check("  data2: 1\n", &["did you mean `spec.data`?"]);
    check("  \"a\\e[31m\": 1\n", &["unknown key `a [31m`"]);
}

#[test]
fn duplicate_keys_are_refused() {
    check(
        "  training:\n    batch: 4\n    steps: 3\n    batch: 8\n",
        &[":11:5: spec.training.batch", "given twice", "the first is on line 9"],
    );
    check("  data: {files: b}\n", &[":8:3: spec.data", "given twice", "line 6"]);
}

#[test]
fn wrong_types_say_what_was_wanted() {
    let training = |line: &str| format!("  training:\n    {line}\n");
    let value = |line: &str, wanted: &[&str]| check(&training(line), wanted);
    value(
        "steps: many",
        &[":9:12: spec.training.steps: wanted a whole number", "got the text `many`", "^^^^"],
    );
    value("steps: \"50\"", &["got the text `50`", "a number stands without quotes"]);
    value("steps: 1.5", &["wanted a whole number from 0 to", "got 1.5"]);
    value("steps: -1", &["got -1"]);
    value("steps:", &[":9:", "wanted a whole number", "got nothing"]);
    value("steps: [1]", &["got a list"]);
    value("batch: 4294967296", &["wanted a whole number from 0 to 4294967295", "got 4294967296"]);
    value("lr: fast", &["wanted a number, got the text `fast`"]);
    value("lr: true", &["wanted a number, got true"]);
    value(
        "precision: f8",
        &["wanted one of fp8, bf16, f32, got the text `f8`", "did you mean `fp8`?"],
    );
    value("precision: bf61", &["wanted one of fp8, bf16, f32", "did you mean `bf16`?"]);
    value("precision: 8", &["wanted one of fp8, bf16, f32, got 8"]);
    value("lr_schedule: cosin", &["wanted one of cosine, wsd, v3, constant", "`cosine`?"]);
    check("  training: fast\n", &["spec.training: wanted a section", "got the text `fast`"]);
    check("  model: {norm_topk_prob: yes}\n", &["wanted true or false, got the text `yes`"]);
    check("  model: 3\n", &["wanted a preset (tiny, small, ", "deepseek-v3) or a section, got 3"]);
}

#[test]
fn numbers_have_bounds() {
    let flag = |flag: &str, wanted: &str| check_flag(flag, &[wanted, flag]);
    flag("training.steps=0", "spec.training.steps: wanted a number from 1 to");
    flag("training.batch=0", "wanted a number from 1 to 131072, got 0");
    flag("training.microbatch=0", "got 0");
    flag("training.sequence=1", "from 2 to");
    flag("training.lr=0", "wanted a number above 0 to 1, got 0");
    flag("training.lr=.nan", "got NaN");
    flag("training.lr=.inf", "got inf");
    flag("training.lr=1e999", "wanted a number");
    flag("training.lr=-0.1", "got -0.1");
    flag("training.beta1=1", "from 0 and below 1, got 1");
    flag("training.clip=0", "above 0");
    flag("training.epsilon=0", "above 0");
    flag("training.lr_final_ratio=1.5", "from 0 to 1");
    flag("training.lr_decay_fraction=0", "above 0 to 1, got 0");
    flag("training.lr_decay_fraction=1.1", "above 0 to 1, got 1.1");
    flag("training.weight_decay=-1", "got -1");
    flag("data.heldout=0", "above 0 and below 1");
    flag("data.heldout=1", "above 0 and below 1");
    flag("data.max_mb=-3", "spec.data.max_mb: wanted a number above 0");
    flag("data.max_mb=.inf", "spec.data.max_mb");
    flag("parallelism.stages=0", "from 1");
    flag("parallelism.expert_shards=0", "from 1");
    flag("parallelism.replicas=0", "from 1");
    flag("workers.local=0", "from 1");
    flag("checkpoint.every=0", "from 1");
    flag("checkpoint.keep=0", "from 1");
    flag("model.hidden_size=0", "spec.model.hidden_size");
    flag("model.n_group=0", "from 1");
    flag("model.num_nextn_predict_layers=4", "from 0 to 3, got 4");
    flag("model.q_lora_rank=0", "from 1");
    flag("model.rope_theta=0", "above 1");
}

#[test]
fn impossible_relations_point_at_the_value() {
    check(
        "  model:\n    preset: tiny\n    n_group: 3\n",
        &[
            ":10:14: spec.model.n_group",
            "16 routed experts cannot be divided evenly into 3 groups",
            "1, 2, 4, 8, 16",
        ],
    );
    check("  model: {n_group: 16}\n", &["16 groups of one expert", "at most 8"]);
    check("  model: {topk_group: 5}\n", &["keeps 5 groups, but n_group is 4"]);
    check("  model: {num_experts_per_tok: 9}\n", &["chooses 9 experts", "have only 8"]);
    check("  model: {qk_rope_head_dim: 15}\n", &["an even number", "got 15"]);
    check("  model: {vocab_size: 50}\n", &["wanted 256 or more for bytes, got 50"]);
    check(
        "  parallelism:\n    expert_shards: 17\n",
        &[":9:20: spec.parallelism.expert_shards", "16 routed experts for 17 shards"],
    );
    check("  parallelism: {stages: 5}\n", &["5 stages for 4 layers", "at most 4"]);
    check(
        "  training:\n    sequence: 2048\n",
        &[":9:15: spec.training.sequence", "has 1024 positions"],
    );
    check(
        "  training: {warmup_steps: 30, steps: 20}\n",
        &["spec.training.warmup_steps", "longer than the run", "at most steps, 20"],
    );
    check("  workers: {local: 4}\n", &["4 workers for 1 cells (grid 1x1x1)"]);
    check("  workers: {min: 2}\n", &["spec.workers.min", "below 2 workers and 1 are started"]);
    check(
        "  parallelism: {replicas: 2000}\n  training: {batch: 2000}\n",
        &["2000 cells", "at most 1024"],
    );
}

#[test]
fn a_broken_default_points_at_its_section() {
    // The sequence is a default; the section that was written is not to blame, so its key is shown.
    check(
        "  model: {max_position_embeddings: 100}\n  training:\n    steps: 3\n",
        &[":9:3: spec.training.sequence", "(its default)", "256 tokens"],
    );
    // The default warm-up of 20 does not forbid a trial run of 5.
    assert_eq!(parse_with(&spec(""), &["training.steps=5"]).unwrap().training.steps, 5);
}

#[test]
fn all_broken_rules_are_reported_at_once() {
    let lines = "  training: {steps: 0, lr: -1}\n  workers: {local: 0}\n";
    let error = parse_with(&spec(lines), &[]).unwrap_err();
    let paths: Vec<&str> = error.problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["spec.training.steps", "spec.training.lr", "spec.workers.local"]);
}

#[test]
fn flags_are_checked_like_lines() {
    check_flag(
        "training.steps=many",
        &[
            "--set training.steps=many: spec.training.steps: wanted a whole number",
            "\n | --set training.steps=many\n |                      ^^^^",
        ],
    );
    check_flag(
        "training.stepz=3",
        &["unknown key `stepz`", "did you mean `spec.training.steps`?", "--set training.stepz=3"],
    );
    check_flag("trainin.steps=3", &["did you mean `spec.training`?"]);
    check_flag("spec.training.bacth=3", &["did you mean `spec.training.batch`?"]);
    check_flag("steps=3", &["`spec.training.steps`"]);
    check_flag("training.steps", &["wanted PATH=VALUE"]);
    check_flag("=3", &["empty part"]);
    check_flag("training..steps=3", &["empty part"]);
    check_flag("training.steps.more=[", &["not valid YAML", "--set training.steps.more=["]);
    check_flag("training.steps=", &["wanted a whole number", "got nothing"]);
    check_flag("data.files.x=1", &["spec.data.files: it is a list, not a section"]);
    check_flag("metadata.nam=x", &["did you mean `metadata.name`?"]);
    check_flag("training={steps: 3, steps: 4}", &["given twice"]);
    check_flag("model=big", &["there is no preset `big`", "config: path/to/config.json"]);
    check_flag("training.batch=3\nsteps: 4", &["--set training.batch=3 steps: 4"]);
}

#[test]
fn the_last_flag_wins_and_flags_open_presets() {
    let flags = ["training.steps=7", "training={steps: 9}", "data.files=[b, c]"];
    let job = parse_with(&spec("  training:\n    batch: 2\n"), &flags).unwrap();
    assert_eq!(job.training.steps, 9);
    assert_eq!(job.data.sources[0].files, ["b", "c"]);
    let job = parse_with(&spec("  model: tiny\n"), &["model.num_hidden_layers=6"]).unwrap();
    assert_eq!(job.model, ModelConfig { num_hidden_layers: 6, ..ModelConfig::tiny() });
}

#[test]
fn models_come_from_a_config_file() {
    let job = parse_with(
        &spec("  model:\n    config: models/config.json\n    n_routed_experts: 4\n"),
        &[],
    );
    let model = job.unwrap().model;
    assert_eq!((model.hidden_size, model.n_routed_experts, model.q_lora_rank), (64, 4, None));
    assert_eq!((model.num_nextn_predict_layers, model.initializer_range), (0, 0.02));
    assert_eq!((model.rope_theta, model.rms_norm_eps), (50_000.0, 1e-5));
    let five = parse_with(&spec("  model: {config: five.json}\n"), &[]).unwrap();
    assert!((five.model.rope_theta - 70_000.0).abs() < 0.01);
}

#[test]
fn config_files_that_cannot_be_trained_are_refused() {
    let config = |file: &str, wanted: &[&str]| {
        check(&format!("  model:\n    config: {file}\n"), wanted);
    };
    config("none.json", &[":9:13: spec.model.config: cannot read `dir/none.json`"]);
    config("v2.json", &["dir/v2.json:3:17: model_type: wanted deepseek_v3, got `deepseek_v2`"]);
    config("softmax.json", &["scoring_func: wanted sigmoid, got `softmax`"]);
    config("no-group.json", &["dir/no-group.json", "n_group: this key is missing"]);
    config("text.json", &["dir/text.json:7:14: n_group: wanted a whole number", "the text `one`"]);
    config("cut.json", &["dir/cut.json", "not valid YAML"]);
    config("grouped.json", &["dir/grouped.json:7:14: spec.model.n_group", "into 3 groups"]);
    check("  model: {config: a, preset: tiny}\n", &["either `preset` or `config`, got both"]);
    check("  model: {config: 3}\n", &["spec.model.config: wanted a text, got 3"]);
    check("  model: tinny\n", &[":8:10: spec.model", "no preset `tinny`", "did you mean `tiny`?"]);
}

#[test]
fn a_pattern_that_matches_nothing_points_at_its_line() {
    let text =
        format!("{HEAD}spec:\n  data:\n    files:\n      - src/*.rs\n      - ${{X:-none}}/*.txt\n");
    let manifest = parse("dir/job.yaml", &text, &[], &config_only).unwrap();
    let error = manifest.files(&|_| None).unwrap_err().to_string();
    let wanted = "dir/job.yaml:9:9: spec.data.files[1]: no file matches \"${X:-none}/*.txt\" \
                  (that is \"none/*.txt\")";
    assert!(error.starts_with(wanted), "{error}");
    let error = manifest.error_at("spec.training.batch", "too little text", "add files");
    assert!(error.to_string().contains("spec.training.batch: too little text (a default)"));
}

#[test]
fn manifests_that_are_made_to_fill_the_memory_are_refused() {
    // Each name stands for ten of the one before: 10^9 words.
    let mut laughs = String::from("  notes:\n    - &a0 [ha]\n");
    for level in 1..10 {
        let ten = vec![format!("*a{}", level - 1); 10].join(", ");
        let _ = writeln!(laughs, "    - &a{level} [{ten}]");
    }
    check(&laughs, &["job.yaml"]);
    let deep = format!("  training: {{steps: {}1{}}}\n", "[".repeat(10_000), "]".repeat(10_000));
    check(&deep, &["job.yaml"]);
    check(&format!("  training: {{steps: {}}}\n", "9".repeat(10_000)), &["job.yaml", "steps"]);
    check(&format!("#{}\n", "x".repeat(BYTES_MAX)), &["a manifest has at most 1048576"]);
}

#[test]
fn no_input_makes_the_parser_panic() {
    // Cut and garbled manifests: any answer will do, but there must be one.
    let text =
        spec("  model: {config: models/config.json}\n  training:\n    steps: 50\n    lr: 1e-3\n");
    let mut state = 1_u64;
    for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
        let _ = parse_with(&text[..cut], &["training.batch=4"]);
        let mut bytes = text.clone().into_bytes();
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let replacement = b"{}[]:-*&!|>'\"\t\n 0#%@`,?~<=";
        bytes[cut] = replacement[(state >> 33) as usize % replacement.len()];
        if let Ok(garbled) = String::from_utf8(bytes) {
            let _ = parse_with(&garbled, &[]).map_err(|error| error.to_string());
        }
    }
}
