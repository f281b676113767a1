
"use strict";
(() => {
    // In milliseconds: how often the page asks, when somebody looks at it and when nobody does, and
    // how long it waits for an answer.
    const POLL = 1000;
    const HIDDEN_POLL = 10000;
    const PATIENCE = 3000;
    // In seconds: what the charts show, what the figures beside them count, and after how long without
    // an answer a line is broken.
    const CHARTED = 120;
    const RECENT = 10;
    const GAP = 5;
    const EVENTS = 20;

    const NOTHING = { share: null, rate: null, time: null };
    const SIGNS = { up: "●", down: "✕", draining: "◐", drained: "○" };

    const by = (id) => document.getElementById(id);
    const within = (element, name) => element.querySelector(`[data-is="${name}"]`);

    // Texts are only ever set as such: nothing that somebody else wrote becomes a part of the page.
    const say = (element, text) => {
        if (element.textContent !== text) element.textContent = text;
    };

    const serving = (pool) => pool.peers.filter((peer) => peer.takes_work).length;

    // As the server says it.
    const short = (seconds) => {
        const whole = Math.floor(seconds);
        const [d, h, m, s] =
            [whole / 86400, whole / 3600 % 24, whole / 60 % 60, whole % 60].map(Math.floor);
        if (d) return `${d} d ${h} h`;
        if (h) return `${h} h ${m} min`;
        if (m) return `${m} min ${s} s`;
        return s < 10 ? `${seconds.toFixed(1)} s` : `${s} s`;
    };
    const clock = (at) => at.slice(0, 19).replace("T", " ");
    const milliseconds = (seconds) => {
        const ms = seconds * 1000;
        if (ms < 10) return `${ms.toFixed(2)} ms`;
        return ms < 1000 ? `${ms.toFixed(0)} ms` : `${seconds.toFixed(1)} s`;
    };
    const rounded = (rate) => (rate && rate < 10 ? rate.toFixed(1) : rate.toFixed(0));
    const perSecond = (rate) => `${rounded(rate)} /s`;
    const percent = (share) => `${(share * 100).toFixed(0)} %`;

    // The reports of the last two minutes, the newest last.
    const reports = [];
    let report = JSON.parse(by("report").textContent);
    const process = report.process;
    let lastAnswer = performance.now();

    // By its id: another one may have its name.
    const peerOf = (report, pool, id) =>
        report.pools.find((it) => it.name === pool)?.peers.find((it) => it.id === id);

    // What a peer did between two reports; nothing if it was no peer all the time.
    const work = (before, after, pool, id) => {
        const [one, other] = [before, after].map((report) => peerOf(report, pool, id));
        if (!one || !other || other.checkouts < one.checkouts || other.queries < one.queries) {
            return null;
        }
        return {
            checkOuts: other.checkouts - one.checkouts,
            queries: other.queries - one.queries,
            time: other.query_seconds - one.query_seconds,
        };
    };

    // Share, queries a second and time a query between two reports: `null` is not known.
    const figures = (before, after, pool, id) => {
        const done = work(before, after, pool.name, id);
        const seconds = after.process.uptime_seconds - before.process.uptime_seconds;
        if (!done || seconds <= 0) return NOTHING;
        const all = pool.peers
            .map((peer) => work(before, after, pool.name, peer.id)?.checkOuts ?? 0)
            .reduce((sum, count) => sum + count, 0);
        return {
            share: all ? done.checkOuts / all : null,
            rate: done.queries / seconds,
            time: done.queries ? done.time / done.queries : null,
        };
    };

    const keyOf = (pool, id) => JSON.stringify([pool, id]);

    const figuresOfAll = (before, after) => new Map(after.pools.flatMap((pool) => pool.peers.map(
        (peer) => [keyOf(pool.name, peer.id), figures(before, after, pool, peer.id)],
    )));

    const recent = () => {
        const now = report.process.uptime_seconds;
        const first = reports.findIndex((it) => it.process.uptime_seconds >= now - RECENT);
        // One more, or there is nothing to compare with after a pause.
        return reports[Math.max(0, Math.min(first, reports.length - 2))];
    };

    const draw = (svg, points, off, highest, label) => {
        const now = report.process.uptime_seconds;
        const x = (t) => (120 * (1 - (now - t) / CHARTED)).toFixed(1);
        const y = (value) => (22.5 - 21 * Math.min(1, value / (highest || 1))).toFixed(1);
        let line = "";
        let last = null;
        for (const { from, to, value } of points) {
            if (value !== null && to - from <= GAP) {
                line += `${last === from ? "" : `M${x(from)} ${y(value)}`}L${x(to)} ${y(value)}`;
                last = to;
            }
        }
        svg.querySelector(".line").setAttribute("d", line);
        const shade = off.map(({ from, to }) => `M${x(from)} 0H${x(to)}V24H${x(from)}Z`);
        svg.querySelector(".off").setAttribute("d", shade.join(""));
        svg.setAttribute("aria-label", label);
    };

    const drawRow = (row, pool, id, now, series, highest) => {
        const off = [];
        for (let at = 1; at < reports.length; at++) {
            const state = peerOf(reports[at], pool.name, id)?.state;
            const [from, to] = [reports[at - 1], reports[at]].map((it) => it.process.uptime_seconds);
            if (state && state !== "up" && to - from <= GAP) off.push({ from, to });
        }
        const charts = [
            ["share", percent, 1],
            ["rate", perSecond, highest.rate],
            ["time", milliseconds, highest.time],
        ];
        for (const [key, words, top] of charts) {
            const points = series.map(({ from, to, figures }) => ({ from, to, value: figures[key] }));
            const values = points.map((point) => point.value).filter((value) => value !== null);
            const label = values.length
                ? `Last two minutes: ${words(Math.min(...values))} to ${words(Math.max(...values))}`
                : "Nothing in the last two minutes";
            const figure = within(row, key);
            say(figure, now[key] === null ? "–" : words(now[key]));
            draw(figure.parentElement.querySelector("svg"), points, off, top, label);
        }
    };

    const showPeer = (row, peer) => {
        const set = (name, text) => say(within(row, name), text);
        row.dataset.state = peer.state;
        set("name", peer.name);
        set("sign", SIGNS[peer.state] ?? "?");
        set("state", peer.state);
        set("for", short(peer.for_seconds));
        const next = peer.next_check_seconds;
        set("next", next >= 0.05 ? `in ${short(next)}` : "now");
        set("links", `${peer.in_use} / ${peer.links}`);
        set("weight", peer.tier ? `${peer.weight}, tier ${peer.tier}` : `${peer.weight}`);
        const remarks = peer.remarks.join(" ");
        set("remarks", remarks);
        row.querySelector(".remarks").hidden = remarks === "";
        const button = row.querySelector("button");
        if (button) {
            const drains = peer.state === "up" || peer.state === "down";
            button.hidden = peer.is_being_removed;
            button.value = drains ? "drain" : "resume";
            say(button, drains ? "Drain" : "Resume");
            button.setAttribute("aria-label", `${button.textContent} ${peer.name}`);
        }
    };

    // The peers' rows, in order. One that is there stays, with the focus that it may have.
    const rowsOf = (section, pool) => {
        const table = section.querySelector("table");
        const left = [...table.tBodies];
        return pool.peers.map((peer, at) => {
            const found = left.findIndex((row) => row.dataset.id === `${peer.id}`);
            let [row] = found < 0 ? [] : left.splice(found, 1);
            if (!row) {
                row = by("peer").content.firstElementChild.cloneNode(true);
                [row.dataset.peer, row.dataset.id] = [peer.name, peer.id];
                const fields = row.querySelector("form")?.elements;
                if (fields) [fields.pool.value, fields.peer.value] = [pool.name, peer.name];
            }
            if (table.tBodies[at] !== row) table.insertBefore(row, table.tBodies[at] ?? null);
            if (at === pool.peers.length - 1) left.forEach((row) => row.remove());
            return row;
        });
    };

    const showEvents = (section, pool) => {
        const list = within(section, "events");
        const shown = pool.events.slice(-EVENTS).reverse();
        const key = shown.map((event) => event.at + event.text).join("\n");
        within(section, "calm").hidden = shown.length > 0;
        if (list.dataset.key === key) return;
        list.dataset.key = key;
        list.replaceChildren(...shown.map((event) => {
            const [item, time, text] = ["li", "time", "span"].map((it) => document.createElement(it));
            time.dateTime = event.at;
            time.textContent = clock(event.at);
            text.textContent = event.text;
            item.append(time, " ", text);
            return item;
        }));
    };

    const showPool = (section, pool, now) => {
        say(within(section, "summary"), `${serving(pool)} of ${pool.peers.length} peers serve`);
        within(section, "closed").hidden = !pool.closed;

        const series = pool.peers.map((peer) => reports.slice(1).map((after, at) => ({
            from: reports[at].process.uptime_seconds,
            to: after.process.uptime_seconds,
            figures: after.figures.get(keyOf(pool.name, peer.id)) ?? NOTHING,
        })));
        const all = series.flat().map((point) => point.figures);
        const highest = {
            rate: Math.max(0, ...all.map((figures) => figures.rate)),
            time: Math.max(0, ...all.map((figures) => figures.time)),
        };
        rowsOf(section, pool).forEach((row, at) => {
            showPeer(row, pool.peers[at]);
            const { id } = pool.peers[at];
            drawRow(row, pool, id, now.get(keyOf(pool.name, id)), series[at], highest);
        });

        const sum = (count) => pool.peers.map(count).reduce((sum, count) => sum + count, 0);
        const rate = sum((peer) => now.get(keyOf(pool.name, peer.id)).rate ?? 0);
        const [used, open] = [sum((peer) => peer.in_use), sum((peer) => peer.links)];
        say(
            within(section, "work"),
            `, ${used} of ${open} connections in use, ${rounded(rate)} queries a second`,
        );
        showEvents(section, pool);
    };

    const titleOf = (pool) => {
        if (pool.closed) return `${pool.name} closed`;
        return `${pool.name} ${serving(pool)}/${pool.peers.length} serve`;
    };

    // What has happened since the last report, for those who do not see it.
    const speak = (before) => {
        const known = before.pools.flatMap((pool) => pool.events.map((it) => it.at + it.text));
        const all = report.pools.flatMap((pool) => [
            ...pool.events.filter((it) => !known.includes(it.at + it.text)).map((it) => it.text),
            ...(pool.closed && !before.pools.find((it) => it.name === pool.name)?.closed
                ? [`${pool.name} is closed`]
                : []),
        ]);
        if (all.length) say(by("spoken"), `${all.join(". ")}.`);
    };

    const show = () => {
        const sections = [...document.querySelectorAll("section")];
        const names = (pools) => JSON.stringify(pools);
        if (names(sections.map((it) => it.dataset.pool)) !== names(report.pools.map((it) => it.name))) {
            location.reload();
            return;
        }
        say(by("at"), clock(report.at));
        say(by("uptime"), short(report.process.uptime_seconds));
        const now = figuresOfAll(recent(), report);
        sections.forEach((section, at) => showPool(section, report.pools[at], now));
        document.title = report.pools.map(titleOf).join(", ") || document.title;
    };

    const setOld = (isOld) => {
        document.documentElement.classList.toggle("old", isOld);
        say(by("live"), isOld ? "Old, of" : "Live,");
        if (isOld && !document.title.startsWith("Old: ")) document.title = `Old: ${document.title}`;
    };

    // As long as it is so, and no longer.
    const warn = (text) => say(by("notice"), text);

    const take = (answer) => {
        const { id, pid, host } = answer.process;
        if (id !== process.id) {
            warn(
                `Another process answers, ${pid}${host ? ` on ${host}` : ""}: the application was ` +
                "restarted, or several processes share this address. What is shown is of process " +
                `${process.pid}. Reload the page to see another one.`,
            );
            setOld(performance.now() - lastAnswer > PATIENCE);
            return;
        }
        const before = report;
        lastAnswer = performance.now();
        report = answer;
        report.figures = figuresOfAll(reports.at(-1) ?? answer, answer);
        reports.push(report);
        const oldest = answer.process.uptime_seconds - CHARTED;
        while (reports[0].process.uptime_seconds < oldest) reports.shift();
        warn("");
        show();
        setOld(false);
        speak(before);
    };

    const ask = async (options) => {
        const response = await fetch("?json", {
            cache: "no-store",
            signal: AbortSignal.timeout(PATIENCE),
            ...options,
        });
        const type = response.headers.get("Content-Type");
        if (!type?.includes("application/json")) {
            throw new Error(
                `the answer is no report, but of status ${response.status} and type ${type}`,
            );
        }
        return response.json();
    };

    const poll = async () => {
        try {
            take(await ask({}));
        } catch (error) {
            const why = error instanceof TypeError ? "the server cannot be reached" : error.message;
            warn(`What is shown here is old, as of ${clock(report.at)} UTC: ${why}.`);
            setOld(true);
        }
        setTimeout(poll, document.hidden ? HIDDEN_POLL : POLL);
    };

    const question = by("question");
    const isConfirmed = (text) => new Promise((answer) => {
        say(by("asked"), text);
        question.returnValue = "no";
        question.onclose = () => answer(question.returnValue === "yes");
        question.showModal();
    });

    const send = async (form, button) => {
        const body = new URLSearchParams(new FormData(form));
        body.set("action", button.value);
        let answer = await ask({ method: "POST", body });
        if (answer.confirm && await isConfirmed(answer.confirm)) {
            body.set("confirm", "yes");
            answer = await ask({ method: "POST", body });
        }
        if (answer.error) say(by("outcome"), answer.error);
        if (answer.pools) take(answer);
    };

    document.addEventListener("submit", async (event) => {
        const form = event.target;
        if (form.method !== "post") return;
        event.preventDefault();
        const button = form.querySelector("button");
        if (button.getAttribute("aria-disabled") === "true") return;
        button.setAttribute("aria-disabled", "true");
        say(by("outcome"), "");
        try {
            await send(form, button);
        } catch (error) {
            say(by("outcome"), `It is not known whether that was done: ${error.message}.`);
        }
        button.removeAttribute("aria-disabled");
    });

    document.documentElement.classList.add("live");
    say(
        by("legend"),
        "Figures: the last 10 seconds. Charts: the last 2 minutes, shaded where a peer was not up; " +
        "those of a pool have one scale.",
    );
    take(report);
    setTimeout(poll, POLL);
})();
