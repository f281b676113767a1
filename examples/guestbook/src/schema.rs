// @generated automatically by Diesel CLI.

diesel::table! {
    entries (id) {
        id -> BigInt,
        written_at -> BigInt,
        name -> Text,
        message -> Text,
    }
}
