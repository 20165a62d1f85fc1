//! The program is what the OpenAPI documents say: every path, method, status, header and body, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use backstamp_tests::client::{Client, Reply, send};
use backstamp_tests::contract::{event, minutes_ago, new_id};
use backstamp_tests::model::Endpoint;
use backstamp_tests::stack::{Account, Stack, path};
use reqwest::Method;
use serde_json::{Value, json};

use super::api::{Answer, Api};

const JANE: &str = "123e4567-e89b-12d3-a456-426614174000";
/// Every method that a client might try.
const METHODS: [&str; 7] = ["get", "head", "options", "post", "put", "patch", "delete"];
/// What no client brings about on a server that is well; tested where a handler panics, and where the store and the log are taken away.
const UNREACHABLE: [u16; 2] = [500, 503];
/// It takes three quarters of a minute to be as slow; the hostile tests are.
const TOO_SLOW: u16 = 408;

#[test]
fn every_example_fits_its_own_schema() {
    for file in ["openapi.yaml", "ops.openapi.yaml"] {
        let api = Api::read(file);
        let mut judged = 0;
        judge_examples(&api, &api.document, &mut judged);
        assert!(file == "ops.openapi.yaml" || judged > 30, "only {judged} in {file}");
    }
}

/// Judges each `example` and each of the `examples` that stand beside a `schema`.
fn judge_examples(api: &Api, node: &Value, judged: &mut usize) {
    if let (Some(schema), Some(_)) = (node.get("schema"), node.as_object()) {
        let named = node["examples"].as_object().into_iter().flatten();
        let values = named.filter_map(|(_, example)| example.get("value"));
        for example in values.chain(node.get("example")) {
            let faults: Vec<String> =
                api.validator(schema).iter_errors(example).map(|f| f.to_string()).collect();
            assert!(faults.is_empty(), "{example:#} is not as its schema: {faults:?}");
            *judged += 1;
        }
    }
    match node {
        Value::Object(fields) => fields.values().for_each(|value| judge_examples(api, value, judged)),
        Value::Array(items) => items.iter().for_each(|value| judge_examples(api, value, judged)),
        _ => {}
    }
}

/// Checks an answer against what is documented of it.
fn judge(api: &Api, what: &str, reply: &Reply, documented: &Answer) {
    for (name, (is_required, schema)) in &documented.headers {
        let Some(value) = reply.headers.get(name.as_str()) else {
            assert!(!is_required, "{what}: {name} is missing");
            continue;
        };
        let text = value.to_str().unwrap();
        let value = text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number));
        let value = if schema["type"] == "string" { json!(text) } else { value };
        assert!(api.validator(schema).is_valid(&value), "{what}: {name} is {text}");
    }
    // What the contract counts up beside HTTP's own.
    let ours = [
        "x-request-id",
        "x-backstamp-visible-until",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
        "link",
        "allow",
        "retry-after",
        "www-authenticate",
    ];
    for name in ours.into_iter().filter(|name| reply.headers.contains_key(*name)) {
        let is_documented = documented.headers.keys().any(|header| header.eq_ignore_ascii_case(name));
        assert!(is_documented, "{what}: {name} is not documented");
    }
    if what.starts_with("head") {
        assert_eq!(reply.body, Value::Null, "{what}");
        return;
    }
    if documented.content.is_empty() {
        assert_eq!(reply.body, Value::Null, "{what}");
        return;
    }
    let content_type = reply.headers["content-type"].to_str().unwrap().split(';').next().unwrap();
    let schema = documented.content.get(content_type);
    let schema = schema.unwrap_or_else(|| panic!("{what}: {content_type} is not documented"));
    let validator = api.validator(schema);
    let faults: Vec<String> = validator.iter_errors(&reply.body).map(|fault| fault.to_string()).collect();
    assert!(faults.is_empty(), "{what} answers {:#}: {faults:?}", reply.body);
}

/// What brings a status about.
struct Cause<'a> {
    account: &'a Account<'a>,
    path: String,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Cause<'_> {
    async fn ask(&self, method: &str) -> Reply {
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let mut request = self.account.request(method.clone(), &self.path);
        if method == Method::POST {
            request = request.header("content-type", self.content_type).body(self.body.clone());
        }
        send(request).await.unwrap()
    }
}

/// The accounts that answers depend on.
struct Cast<'a> {
    known: Account<'a>,
    nobody: Account<'a>,
    limited: Account<'a>,
}

fn filled(template: &str, id: &str) -> String {
    template.replace("{id}", id).replace("{uuid}", id)
}

/// The request that is to be answered with `status`.
fn cause<'a>(cast: &'a Cast<'a>, weak: &'a Account<'a>, template: &str, status: u16) -> Cause<'a> {
    let is_intake = !template.contains('{');
    let known = if template.contains("{uuid}") { JANE } else { "cmp_abc123" };
    let unknown = if template.contains("{uuid}") { new_id() } else { "never".to_owned() };
    let good =
        event("evt_doc", "open", minutes_ago(1), &json!({ "contact_id": JANE, "campaign_id": "cmp_abc123" }));
    let body = match (template, status) {
        (_, 400) => b"{}".to_vec(),
        (_, 413) => vec![b' '; (8 << 20) + 1],
        ("/v1/references", _) => json!({ "kind": "campaign", "id": "cmp_abc123" }).to_string().into_bytes(),
        _ => good.to_string().into_bytes(),
    };
    let query = if [400, 422].contains(&status) && !is_intake { "?page=0" } else { "" };
    let account = match status {
        401 => &cast.nobody,
        403 => weak,
        429 => &cast.limited,
        _ => &cast.known,
    };
    Cause {
        account,
        path: filled(template, if status == 404 { &unknown } else { known }) + query,
        content_type: if status == 415 { "text/plain" } else { "application/json" },
        body,
    }
}

#[tokio::test]
async fn every_documented_answer_is_given_as_documented_and_nothing_else_is_served() {
    let api = Api::read("openapi.yaml");
    let stack = Stack::dev().await;
    let few = stack.another_door(&[("BACKSTAMP_RATE_LIMIT", "1/h")]).await;
    let known = stack.account().await;
    let weak = [
        known.with_permissions(&["contacts:read", "references:write"]).await,
        known.with_permissions(&["campaigns:read", "events:write"]).await,
    ];
    let cast =
        Cast { known, nobody: Account::new(&stack, "nobody", "wbk_nothing"), limited: few.account().await };
    publish_some_of_everything(&cast.known).await;
    // Used up: one of each.
    cast.limited.campaign("never", "").await;
    cast.limited.post("/v1/events", "application/json", "{}").await;

    let not_allowed = api.answer(&api.document["components"]["responses"]["MethodNotAllowed"]);
    let mut documented: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (template, method, answers) in api.operations() {
        documented.entry(template).or_default().insert(method);
        for (status, answer) in answers {
            // A method that is there is never refused: 405 is what the others answer, below.
            if UNREACHABLE.contains(&status) || [TOO_SLOW, 405].contains(&status) {
                continue;
            }
            let is_campaigns = template.contains("campaigns") || template == "/v1/events";
            let weak = &weak[usize::from(!is_campaigns)];
            let reply = cause(&cast, weak, template, status).ask(method).await;
            let what = format!("{method} {template} for {status}");
            assert_eq!(reply.status, status, "{what}: {}", reply.body);
            judge(&api, &what, &reply, &answer);
        }
    }
    for (template, methods) in documented {
        for method in METHODS.into_iter().filter(|method| !methods.contains(method)) {
            let weak = &weak[0];
            let reply = cause(&cast, weak, template, 405).ask(method).await;
            let what = format!("{method} {template}");
            assert_eq!(reply.status, 405, "{what}");
            judge(&api, &what, &reply, &not_allowed);
            let allowed: BTreeSet<String> =
                reply.headers["allow"].to_str().unwrap().split(", ").map(str::to_lowercase).collect();
            assert_eq!(allowed, methods.iter().map(|method| (*method).to_owned()).collect(), "{what}");
        }
    }
    let unknown_path = api.answer(api.follow(&api.document["x-any-other-path"]));
    judge(&api, "get /nowhere", &cast.known.get("/nowhere").await, &unknown_path);
}

/// An event of every type on the documented campaign and contact, so that every kind of row is judged.
async fn publish_some_of_everything(account: &Account<'_>) {
    let purchase = json!({
        "order_uuid": "o", "product_uuid": "p", "product_name": "Pro", "variant_name": "annual",
        "is_subscription": true,
    });
    let more = json!({
        "contact_id": JANE, "campaign_id": "cmp_abc123", "automation_id": "a", "list_id": "l", "step_id": "step_1",
        "email": "jane@example.com", "url": "https://a.example/", "purchase": purchase,
        "metadata": { "user_agent": "M" },
    });
    let types = [
        "send",
        "delivery",
        "bounce",
        "open",
        "click",
        "reply",
        "complaint",
        "subscribe",
        "unsubscribe",
        "global_unsubscribe",
        "global_resubscribe",
        "automation_unsubscribe",
        "purchase",
        "create",
        "import",
    ];
    let mut events: Vec<Value> =
        (1..).zip(types).map(|(n, kind)| event(kind, kind, minutes_ago(n), &more)).collect();
    events.push(event(
        "waits",
        "open",
        minutes_ago(30),
        &json!({ "message_id": "m", "campaign_id": "cmp_abc123" }),
    ));
    account.publish(&events).await;
    account.refer(&[json!({ "kind": "campaign", "id": "cmp_abc123", "name": "Spring Sale" })]).await;
    account.has_total(&path(Endpoint::Campaign, "cmp_abc123", ""), 11).await;
    account.has_total(&path(Endpoint::Contact, JANE, ""), 13).await;
}

#[tokio::test]
async fn the_ops_address_is_as_documented() {
    let api = Api::read("ops.openapi.yaml");
    let stack = Stack::dev().await;
    for (_, service) in stack.services() {
        let client = Client::new(service.ops_url()).unwrap();
        for (path, method, answers) in api.operations() {
            assert_eq!(method, "get");
            let reply = backstamp_tests::eventually(backstamp_tests::stack::PATIENCE, async || {
                let reply = send(client.request(Method::GET, path)).await?;
                anyhow::ensure!(reply.status == 200, "{path} answers {}", reply.status);
                Ok(reply)
            })
            .await;
            judge(&api, &format!("get {path}"), &reply, &answers[&200]);
        }
    }
}
