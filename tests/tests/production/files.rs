//! The files of `deploy/`: each by the schema or the program that knows it, and each option and variable by `backstamp … --help`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use backstamp_tests::program::Program;
use backstamp_tests::prometheus::repository_file;
use backstamp_tests::scratch;
use serde_json::{Value, json};

const SUBCOMMANDS: [&[&str]; 6] =
    [&["dev"], &["ingest"], &["query"], &["collect"], &["schema", "apply"], &["keys", "create"]];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy")
}

/// The documents of a YAML file, with what is merged in.
fn documents(path: &str) -> Vec<Value> {
    let text = repository_file(path);
    let read = |document| {
        let mut value: serde_yaml_ng::Value = serde::Deserialize::deserialize(document).unwrap();
        // What is merged in may merge in more.
        for _ in 0..3 {
            value.apply_merge().unwrap();
        }
        serde_json::to_value(value).unwrap()
    };
    serde_yaml_ng::Deserializer::from_str(&text).map(read).collect()
}

fn assert_valid(schema: &Value, value: &Value, what: &str) {
    let schema = jsonschema::options().should_validate_formats(false).build(schema).unwrap();
    let faults: Vec<String> =
        schema.iter_errors(value).map(|fault| format!("{}: {fault}", fault.instance_path())).collect();
    assert!(faults.is_empty(), "{what}: {faults:#?}");
}

/// What `--help` of a subcommand names.
async fn help(subcommand: &[&str]) -> String {
    let output = Program::run(&[subcommand, &["--help"]].concat(), &[]).await;
    assert!(output.status.success(), "{output}");
    // Its lines are broken anywhere.
    output.stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A command line such as `schema apply --replication-factor 1` names a subcommand, and only options that it has.
async fn assert_command(command: &str, file: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let subcommand: Vec<&str> = words.iter().take_while(|word| !word.starts_with('-')).copied().collect();
    assert!(SUBCOMMANDS.contains(&subcommand.as_slice()), "{file}: {command} is no subcommand");
    let help = help(&subcommand).await;
    for option in words.iter().filter(|word| word.starts_with("--")) {
        let option = option.split('=').next().unwrap();
        assert!(help.contains(&format!("{option} ")), "{file}: {subcommand:?} has no {option}");
    }
}

/// Every `BACKSTAMP_…` in these files is a variable of some subcommand.
#[tokio::test]
async fn every_variable_is_one_that_a_subcommand_reads() {
    let mut known = BTreeSet::new();
    for subcommand in SUBCOMMANDS {
        let help = help(subcommand).await;
        let found = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
        known.extend(found.map(str::to_owned));
    }
    assert!(known.len() > 15, "{known:?}");
    let mut files = vec![deploy()];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for word in text.split(|c: char| !c.is_ascii_uppercase() && c != '_') {
            if word.strip_prefix("BACKSTAMP_").is_some_and(|rest| !rest.is_empty()) {
                seen += 1;
                assert!(known.contains(word), "{}: nobody reads {word}", path.display());
            }
        }
    }
    assert!(seen > 15, "only {seen}");
}

#[tokio::test]
async fn the_compose_file_is_by_its_schema_and_its_commands_are_ours() {
    let [mut compose] = <[Value; 1]>::try_from(documents("deploy/compose.yaml")).unwrap();
    // The schema is older than this field.
    assert!(compose.as_object_mut().unwrap().remove("name").is_some_and(|name| name.is_string()));
    let mut schema: Value =
        serde_json::from_str(&repository_file("deploy/schemas/compose-spec.json")).unwrap();
    // Its draft is older than it says.
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    drop_ids(&mut schema);
    assert_valid(&schema, &compose, "compose.yaml");
    let services = compose["services"].as_object().unwrap();
    let ours = services.iter().filter(|(_, service)| service["image"] == "backstamp");
    for (name, service) in ours {
        let command = service["command"].as_str().unwrap_or_else(|| panic!("{name} has no command"));
        assert_command(command, "compose.yaml").await;
        assert_eq!((&service["read_only"], &service["cap_drop"]), (&json!(true), &json!(["ALL"])), "{name}");
    }
    for (name, service) in services {
        let image = service["image"].as_str().unwrap();
        let is_pinned =
            image == "backstamp" || image.rsplit_once(':').is_some_and(|(_, tag)| tag != "latest");
        assert!(is_pinned, "{name}: {image} names no version");
        // What is mounted from here is here.
        let mounts = service["volumes"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for source in
            mounts.filter_map(|mount| mount.split(':').next()).filter(|source| source.starts_with("./"))
        {
            assert!(deploy().join(source).exists(), "{name} mounts {source}");
        }
        for needed in service["depends_on"].as_object().into_iter().flatten() {
            assert!(services.contains_key(needed.0), "{name} waits for {}", needed.0);
        }
    }
}

/// An `id` in the middle of a schema would be the base of the references below it.
fn drop_ids(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("id").is_some_and(Value::is_string) {
                fields.remove("id");
            }
            fields.values_mut().for_each(drop_ids);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_ids),
        _ => {}
    }
}

#[tokio::test]
async fn the_manifests_are_by_their_schemas_and_belong_together() {
    let schemas: Value = serde_json::from_str(&repository_file("deploy/schemas/kubernetes.json")).unwrap();
    let kustomization = &documents("deploy/kubernetes/kustomization.yaml")[0];
    let listed = kustomization["resources"].as_array().unwrap().iter().filter_map(Value::as_str);
    let listed: BTreeSet<&str> = listed.collect();
    let there = fs::read_dir(deploy().join("kubernetes")).unwrap().map(|entry| entry.unwrap().file_name());
    let there: BTreeSet<String> = there
        .map(|name| name.into_string().unwrap())
        .filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml")
        .collect();
    assert_eq!(listed, there.iter().map(String::as_str).collect());
    let mut workloads = 0;
    for file in &listed {
        for document in documents(&format!("deploy/kubernetes/{file}")) {
            let kind = document["kind"].as_str().unwrap();
            let definition =
                schemas["kinds"][kind].as_str().unwrap_or_else(|| panic!("{file}: {kind} has no schema"));
            let mut schema = schemas.clone();
            schema["$ref"] = json!(format!("#/definitions/{definition}"));
            assert_valid(&schema, &document, &format!("{file}: {kind}"));
            let pod = &document["spec"]["template"]["spec"];
            for container in pod["containers"].as_array().into_iter().flatten() {
                workloads += 1;
                let arguments: Vec<&str> =
                    container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                assert_command(&arguments.join(" "), file).await;
                let security = &container["securityContext"];
                assert_eq!(security["readOnlyRootFilesystem"], true, "{file}");
                assert_eq!(security["allowPrivilegeEscalation"], false, "{file}");
                assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{file}");
                if kind == "Deployment" {
                    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                        assert_eq!(container[probe]["httpGet"]["port"], "ops", "{file}: {probe}");
                    }
                }
            }
        }
    }
    assert_eq!(workloads, 4);
    let scaled = &documents("deploy/kubernetes/lag-scaling/scaledobject.yaml")[0];
    let schema = serde_json::from_str(&repository_file("deploy/schemas/keda-scaledobject.json")).unwrap();
    assert_valid(&schema, scaled, "scaledobject.yaml");
    assert_eq!(scaled["spec"]["scaleTargetRef"]["name"], "backstamp-ingest");
}

#[tokio::test]
async fn the_units_are_right_and_give_a_service_little_room() {
    let units = fs::read_dir(deploy().join("systemd")).unwrap().map(|entry| entry.unwrap().path());
    let units: Vec<PathBuf> =
        units.filter(|path| path.extension().is_some_and(|end| end == "service")).collect();
    assert_eq!(units.len(), 3);
    let has_systemd = Command::new("systemd-analyze").arg("--version").output().is_ok();
    let folder = scratch::directory("systemd");
    for unit in units {
        let name = unit.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&unit).unwrap();
        let command = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/backstamp "));
        assert_command(command.unwrap_or_else(|| panic!("{name} does not start backstamp")), &name).await;
        if !has_systemd {
            eprintln!("{name} is not verified: there is no systemd-analyze here (apt-get install systemd)");
            continue;
        }
        // It wants the program to be there.
        let copy = folder.join(&name);
        fs::write(&copy, text.replace("/usr/local/bin/backstamp", "/bin/true")).unwrap();
        for arguments in
            [&["verify", "--man=no"][..], &["security", "--offline=yes", "--threshold=20", "--no-pager"]]
        {
            let output = Command::new("systemd-analyze").args(arguments).arg(&copy).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {}{said}", String::from_utf8_lossy(&output.stdout));
            let ours: Vec<&str> = said.lines().filter(|line| line.contains(&*name)).collect();
            assert!(ours.is_empty(), "{name}: {ours:?}");
        }
    }
}

#[test]
fn the_image_is_of_pinned_versions_and_does_not_run_as_root() {
    let text = repository_file("deploy/Containerfile");
    let from: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    assert_eq!(from.len(), 2, "two stages");
    for image in &from {
        let image = image.split_whitespace().next().unwrap();
        let tag = image.rsplit_once(':').unwrap_or_else(|| panic!("{image} names no version")).1;
        assert_ne!(tag, "latest");
    }
    // The toolchain that the repository builds with.
    let version = from[0].split(':').nth(1).unwrap().split('-').next().unwrap();
    assert!(
        repository_file("Cargo.toml").contains(&format!("rust-version = \"{}\"", &version[..4])),
        "{version}"
    );
    let user = text.lines().rev().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert!(user.starts_with("10001"), "{user}");
}
