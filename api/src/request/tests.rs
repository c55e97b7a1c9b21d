use super::*;

fn refused(fields: Fields) -> String {
    fields.finish().unwrap_err().message
}

#[test]
fn every_fault_is_named_at_once() {
    let body = br#"{"name": 7, "port": 99999, "mode": "fast", "passwrd": "hidden",
                    "list": ["a", 3], "items": [{"a": 1, "b": 2}, 5]}"#;
    let mut fields = Fields::parse(body).unwrap();
    fields.required_text("name");
    fields.required_text("host");
    fields.integer("port", 1..=65535);
    fields.choice("mode", &[("slow", 1), ("steady", 2)]);
    fields.texts("list");
    for mut item in fields.objects("items", false).unwrap() {
        item.required_text("a");
        fields.absorb(item);
    }
    let message = refused(fields);
    for expected in [
        "name: is a number; give a string",
        "host: is required",
        "port: is 99999; give a whole number from 1 to 65535",
        "mode: is \"fast\"; give \"slow\" or \"steady\"",
        "passwrd: is not a known field",
        "list[1]: is a number; give a string",
        "items[0].a: is a number; give a string",
        "items[0].b: is not a known field",
        "items[1]: is a number; give an object",
    ] {
        assert!(
            message.contains(expected),
            "{expected:?} missing in {message:?}"
        );
    }
    assert!(!message.contains("hidden"));
    assert_eq!(message.matches("name: ").count(), 1);
}

#[test]
fn null_is_absence_and_defaults_apply() {
    let mut fields = Fields::parse(br#"{"a": null, "b": null}"#).unwrap();
    assert!(fields.boolean("a", true));
    assert_eq!(fields.small("b", 1..=10, 4), 4);
    assert_eq!(fields.finish(), Ok(()));
}

#[test]
fn numbers_are_whole_and_in_range() {
    for bad in ["-1", "1.5", "1e30", "\"8\"", "0"] {
        let body = format!("{{\"n\": {bad}}}");
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        fields.small("n", 1..=10, 4);
        assert!(refused(fields).starts_with("n: is "), "{bad}");
    }
}

#[test]
fn what_is_not_an_object_is_refused() {
    for body in ["[]", "7", "{", "{\"a\":1,}", "\"x\"", "\u{1}"] {
        let refusal = Fields::parse(body.as_bytes()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{body}");
    }
    assert!(Fields::parse(b" \n").is_ok());
}
