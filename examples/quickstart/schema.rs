diesel::table! {
    visits (id) {
        id -> Integer,
        peer -> Text,
    }
}
