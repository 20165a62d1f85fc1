//! Requests at odds with themselves: whatever a proxy in front makes of them, what is hidden in their bodies is never answered.

use backstamp_tests::stack::Stack;

use super::wire::Wire;

/// One answer of this status at most, then the end; or none at all.
struct Case {
    what: &'static str,
    head: String,
    body: String,
    status: u16,
}

fn case(what: &'static str, status: u16, head: &str, body: &str) -> Case {
    Case { what, status, head: head.to_owned(), body: body.to_owned() }
}

#[tokio::test]
async fn what_is_hidden_in_a_body_is_not_answered() {
    let stack = Stack::shared_dev().await;
    let account = stack.account().await;
    let key = &account.key;
    let hidden =
        format!("GET /v1/campaigns/hidden/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n");
    let event = r#"{"id":"e","type":"open"}"#;
    let chunked = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let nothing_accepted = 400;
    let post = format!("POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n");
    let te = "Transfer-Encoding: chunked\r\n";
    let length = |bytes: usize| format!("Content-Length: {bytes}\r\n");
    let cases = [
        // The chunks count (RFC 9112, section 6.3), and the connection ends all the same.
        case(
            "both, the length first",
            nothing_accepted,
            &format!("{post}{}{te}", length(4)),
            &(chunked(event) + &hidden),
        ),
        case(
            "both, the length last",
            nothing_accepted,
            &format!("{post}{te}{}", length(4)),
            &(chunked(event) + &hidden),
        ),
        case(
            "both, and the length is all",
            nothing_accepted,
            &format!("{post}{te}{}", length(5 + hidden.len())),
            &("0\r\n\r\n".to_owned() + &hidden),
        ),
        case("two lengths", 400, &format!("{post}{}{}", length(0), length(hidden.len())), &hidden),
        case("a list of lengths", 400, &format!("{post}Content-Length: 0, {}\r\n", hidden.len()), &hidden),
        case("a signed length", 400, &format!("{post}Content-Length: +0\r\n"), &hidden),
        case("a hexadecimal length", 400, &format!("{post}Content-Length: 0x0\r\n"), &hidden),
        case(
            "an endless length",
            400,
            &format!("{post}Content-Length: 99999999999999999999999\r\n"),
            &hidden,
        ),
        case(
            "a space before the colon",
            400,
            &format!("{post}Transfer-Encoding : chunked\r\n"),
            &(chunked(event) + &hidden),
        ),
        case(
            "a folded header",
            400,
            &format!("{post}Transfer-Encoding:\r\n chunked\r\n"),
            &(chunked(event) + &hidden),
        ),
        case("a folded length", 400, &format!("{post}Content-Length: 1\r\n\t0\r\n"), &hidden),
        case("a header that begins with a space", 400, &format!("{post} Content-Length: 0\r\n"), &hidden),
        case(
            "an unknown coding",
            400,
            &format!("{post}Transfer-Encoding: xchunked\r\n"),
            &(chunked(event) + &hidden),
        ),
        case(
            "a coding after chunked",
            400,
            &format!("{post}Transfer-Encoding: chunked, identity\r\n"),
            &(chunked(event) + &hidden),
        ),
        case("identity", 400, &format!("{post}Transfer-Encoding: identity\r\n"), &hidden),
        case(
            "a vertical tab before a coding",
            400,
            &format!("{post}Transfer-Encoding: \u{b}chunked\r\n"),
            &(chunked(event) + &hidden),
        ),
        case(
            "chunks in HTTP/1.0",
            400,
            &format!("{}{te}", post.replace("HTTP/1.1", "HTTP/1.0")),
            &(chunked(event) + &hidden),
        ),
        case("a NUL in a header", 400, &format!("{post}X: a\0b\r\n"), &hidden),
        case("a bare CR in a header", 400, &format!("{post}X: a\rContent-Length: 0\r\n"), &hidden),
        case("a header without a colon", 400, &format!("{post}nothing\r\n"), &hidden),
        case(
            "a chunk size with a prefix",
            400,
            &format!("{post}{te}"),
            &format!("0x2\r\n{{}}\r\n0\r\n\r\n{hidden}"),
        ),
        case(
            "a negative chunk size",
            400,
            &format!("{post}{te}"),
            &format!("-2\r\n{{}}\r\n0\r\n\r\n{hidden}"),
        ),
        case(
            "an endless chunk size",
            400,
            &format!("{post}{te}"),
            &format!("fffffffffffffffff\r\n{{}}\r\n0\r\n\r\n{hidden}"),
        ),
        case(
            "a chunk size with a space in it",
            400,
            &format!("{post}{te}"),
            &format!("2 0\r\n{{}}\r\n0\r\n\r\n{hidden}"),
        ),
        case(
            "a chunk that is longer than it says",
            400,
            &format!("{post}{te}"),
            &format!("1\r\n{{}}\r\n0\r\n\r\n{hidden}"),
        ),
        case(
            "a chunk size that ends in a bare CR",
            400,
            &format!("{post}{te}"),
            &format!("2\rx{{}}\r\n0\r\n\r\n{hidden}"),
        ),
        case(
            "a long chunk extension",
            400,
            &format!("{post}{te}"),
            &format!("2;{}\r\n{{}}\r\n0\r\n\r\n{hidden}", "x".repeat(64 << 10)),
        ),
        case("no HTTP at all", 400, "\u{16}\u{3}\u{1}\u{2}\0\u{1}", &hidden),
        case("HTTP/2 without asking", 400, "PRI * HTTP/2.0\r\n\r\nSM\r\n", ""),
        case("a version of its own", 400, &post.replace("HTTP/1.1", "HTTP/1.9"), &hidden),
        case(
            "more headers than there is room for",
            431,
            &format!("{post}{}", "X: y\r\n".repeat(1000)),
            &hidden,
        ),
        case(
            "a header larger than there is room for",
            431,
            &format!("{post}X: {}\r\n", "y".repeat(1 << 20)),
            &hidden,
        ),
        case(
            "a longer path than there is room for",
            414,
            &format!("GET /{} HTTP/1.1\r\nHost: a\r\n", "y".repeat(70 << 10)),
            "",
        ),
    ];
    for Case { what, head, body, status } in cases {
        let mut wire = Wire::to(stack.intake_url()).await;
        wire.send(format!("{head}\r\n{body}")).await;
        let answers = wire.answers().await;
        eprintln!("{what}: {answers:?}");
        assert!(answers.len() <= 1, "{what}: {answers:?}");
        assert!(answers.iter().all(|answer| answer.status == status), "{what}: {answers:?}");
        assert!(
            !answers.iter().any(|answer| answer.body.contains("campaign_not_found")),
            "{what}: {answers:?}"
        );
    }
}

/// What is well formed goes on on the same connection, however it is cut.
#[tokio::test]
async fn well_formed_requests_follow_each_other() {
    let stack = Stack::shared_dev().await;
    let account = stack.account().await;
    let post = format!("POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n", account.key);
    let get = format!(
        "GET /v1/campaigns/none/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n",
        account.key
    );
    let chunks = "1;name=\"value\"\r\n{\r\n01\r\n}\r\n0\r\nTrailer: ignored\r\n\r\n";
    let requests = [
        format!("{post}Transfer-Encoding: chunked\r\n\r\n{chunks}"),
        format!("{post}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}"),
        get,
    ]
    .concat();
    let mut wire = Wire::to(stack.url()).await;
    for byte in requests.as_bytes() {
        assert!(wire.send([*byte]).await);
    }
    for status in [400, 400, 404] {
        let answer = wire.answer().await.expect("an answer");
        assert_eq!(answer.status, status, "{}", answer.body);
    }
}
