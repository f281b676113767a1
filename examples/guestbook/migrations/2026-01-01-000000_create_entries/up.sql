CREATE TABLE entries (
    -- Given by the application: peers that count on their own would give two entries one number.
    id BIGINT NOT NULL PRIMARY KEY,
    -- Milliseconds since 1970.
    written_at BIGINT NOT NULL,
    name VARCHAR(60) NOT NULL,
    message TEXT NOT NULL
) /*! CHARACTER SET utf8mb4 */; -- A comment, which MySQL and MariaDB execute.

CREATE INDEX entries_by_time ON entries (written_at, id);
