
"use strict";
(() => {
    // In milliseconds: the interval of requests while the page is visible and while it is hidden, and
    // their timeout.
    const POLL = 1000;
    const HIDDEN_POLL = 10000;
    const TIMEOUT = 3000;
    // In seconds: the period of the charts, the period of the figures beside them, and the longest time
    // between two reports over which a line is drawn.
    const CHARTED = 120;
    const RECENT = 10;
    const GAP = 5;
    const EVENTS = 20;

    const UNKNOWN = { share: null, rate: null, time: null };
    const SIGNS = { up: "●", down: "✕", degraded: "▲", draining: "◐", drained: "○" };

    const byId = (id) => document.getElementById(id);
    const part = (element, name) => element.querySelector(`[data-is="${name}"]`);

    // Texts are only set as `textContent`, so that no name or message becomes HTML.
    const setText = (element, text) => {
        if (element.textContent !== text) element.textContent = text;
    };

    const available = (pool) => pool.peers.filter((peer) => peer.is_available).length;

    // The same formats as the server's.
    const duration = (seconds) => {
        const whole = Math.floor(seconds);
        const [d, h, m, s] =
            [whole / 86400, whole / 3600 % 24, whole / 60 % 60, whole % 60].map(Math.floor);
        if (d) return `${d} d ${h} h`;
        if (h) return `${h} h ${m} min`;
        if (m) return `${m} min ${s} s`;
        return s < 10 ? `${seconds.toFixed(1)} s` : `${s} s`;
    };
    const dateAndTime = (at) => at.slice(0, 19).replace("T", " ");
    const milliseconds = (seconds) => {
        const ms = seconds * 1000;
        if (ms < 10) return `${ms.toFixed(2)} ms`;
        return ms < 1000 ? `${ms.toFixed(0)} ms` : `${seconds.toFixed(1)} s`;
    };
    const rounded = (rate) => (rate && rate < 10 ? rate.toFixed(1) : rate.toFixed(0));
    const perSecond = (rate) => `${rounded(rate)} /s`;
    const percent = (share) => `${(share * 100).toFixed(0)} %`;

    // The reports of the charted period, the newest last.
    const reports = [];
    let report = JSON.parse(byId("report").textContent);
    const process = report.process;
    let lastReportAt = performance.now();

    // Finds a peer by its id, because two peers may have the same name.
    const peerOf = (report, pool, id) =>
        report.pools.find((other) => other.name === pool)?.peers.find((peer) => peer.id === id);

    // The work of a peer between two reports, or `null` if it was not the same peer all the time.
    const work = (before, after, pool, id) => {
        const [first, last] = [before, after].map((report) => peerOf(report, pool, id));
        if (!first || !last || last.checkouts < first.checkouts || last.queries < first.queries) {
            return null;
        }
        return {
            checkouts: last.checkouts - first.checkouts,
            queries: last.queries - first.queries,
            time: last.query_seconds - first.query_seconds,
        };
    };

    // The share of work, queries per second and mean query time between two reports. `null` is unknown.
    const figures = (before, after, pool, id) => {
        const done = work(before, after, pool.name, id);
        const seconds = after.process.uptime_seconds - before.process.uptime_seconds;
        if (!done || seconds <= 0) return UNKNOWN;
        const all = pool.peers
            .map((peer) => work(before, after, pool.name, peer.id)?.checkouts ?? 0)
            .reduce((sum, count) => sum + count, 0);
        return {
            share: all ? done.checkouts / all : null,
            rate: done.queries / seconds,
            time: done.queries ? done.time / done.queries : null,
        };
    };

    const keyOf = (pool, id) => JSON.stringify([pool, id]);

    const figuresOfAll = (before, after) => new Map(after.pools.flatMap((pool) => pool.peers.map(
        (peer) => [keyOf(pool.name, peer.id), figures(before, after, pool, peer.id)],
    )));

    // The report from which the figures are counted.
    const recent = () => {
        const now = report.process.uptime_seconds;
        const first = reports.findIndex((other) => other.process.uptime_seconds >= now - RECENT);
        // At least one report before the last, so that there is something to compare after a pause.
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
            const [from, to] = [reports[at - 1], reports[at]].map((report) => report.process.uptime_seconds);
            if (state && state !== "up" && to - from <= GAP) off.push({ from, to });
        }
        const charts = [
            ["share", percent, 1],
            ["rate", perSecond, highest.rate],
            ["time", milliseconds, highest.time],
        ];
        for (const [key, format, top] of charts) {
            const points = series.map(({ from, to, figures }) => ({ from, to, value: figures[key] }));
            const values = points.map((point) => point.value).filter((value) => value !== null);
            const label = values.length
                ? `Last two minutes: ${format(Math.min(...values))} to ${format(Math.max(...values))}`
                : "No data for the last two minutes";
            const figure = part(row, key);
            setText(figure, now[key] === null ? "–" : format(now[key]));
            draw(figure.parentElement.querySelector("svg"), points, off, top, label);
        }
    };

    const showPeer = (row, peer) => {
        const set = (name, text) => setText(part(row, name), text);
        row.dataset.state = peer.state;
        set("name", peer.name);
        set("sign", SIGNS[peer.state] ?? "?");
        set("state", peer.state);
        set("for", duration(peer.for_seconds));
        const next = peer.next_check_seconds;
        set("next", next >= 0.05 ? `in ${duration(next)}` : "now");
        set("connections", `${peer.in_use} / ${peer.connections}`);
        set("weight", peer.tier ? `${peer.weight}, tier ${peer.tier}` : `${peer.weight}`);
        const remarks = peer.remarks.join(" ");
        set("remarks", remarks);
        row.querySelector(".remarks").hidden = remarks === "";
        const button = row.querySelector("button");
        if (button) {
            const drains = ["up", "down", "degraded"].includes(peer.state);
            button.hidden = peer.is_being_removed;
            button.value = drains ? "drain" : "resume";
            setText(button, drains ? "Drain" : "Resume");
            button.setAttribute("aria-label", `${button.textContent} ${peer.name}`);
        }
    };

    // The rows of the peers, in their order. Existing rows are kept, so that they keep the focus.
    const rowsOf = (section, pool) => {
        const table = section.querySelector("table");
        const left = [...table.tBodies];
        return pool.peers.map((peer, at) => {
            const found = left.findIndex((row) => row.dataset.id === `${peer.id}`);
            let [row] = found < 0 ? [] : left.splice(found, 1);
            if (!row) {
                row = byId("peer").content.firstElementChild.cloneNode(true);
                [row.dataset.peer, row.dataset.id] = [peer.name, peer.id];
                const fields = row.querySelector("form")?.elements;
                if (fields) [fields.pool.value, fields.peer.value] = [pool.name, peer.name];
            }
            if (table.tBodies[at] !== row) table.insertBefore(row, table.tBodies[at] ?? null);
            if (at === pool.peers.length - 1) left.forEach((row) => row.remove());
            return row;
        });
    };

    const element = (name, attributes, text) => {
        const created = document.createElement(name);
        Object.entries(attributes).forEach(([name, value]) => created.setAttribute(name, value));
        if (text !== undefined) created.textContent = text;
        return created;
    };

    const showTransactions = (section, pool) => {
        const peers = pool.peers.filter((peer) => Object.values(peer.transactions).some(Boolean));
        const isBudgetFull = pool.retry_budget === pool.retry_budget_max;
        const shown = part(section, "transactions");
        shown.hidden = peers.length === 0 && isBudgetFull;
        setText(part(section, "budget"), `${pool.retry_budget} of ${pool.retry_budget_max}`);
        const table = shown.querySelector("table");
        table.hidden = peers.length === 0;
        const key = JSON.stringify(peers.map((peer) => [peer.name, peer.transactions]));
        if (table.dataset.key === key) return;
        table.dataset.key = key;
        const columns = [...table.tHead.querySelectorAll("[data-count]")];
        [...table.tBodies].forEach((body) => body.remove());
        table.append(...peers.map((peer) => {
            const row = element("tr", { role: "row" });
            row.append(
                element("th", { role: "rowheader", scope: "row" }, peer.name),
                ...columns.map((column) => element(
                    "td",
                    { role: "cell", class: "number", "data-head": column.textContent },
                    peer.transactions[column.dataset.count],
                )),
            );
            const body = element("tbody", { role: "rowgroup" });
            body.append(row);
            return body;
        }));
    };

    const showEvents = (section, pool) => {
        const list = part(section, "events");
        const shown = pool.events.slice(-EVENTS).reverse();
        const key = shown.map((event) => event.at + event.text).join("\n");
        part(section, "no-events").hidden = shown.length > 0;
        if (list.dataset.key === key) return;
        list.dataset.key = key;
        list.replaceChildren(...shown.map((event) => {
            const item = element("li", {});
            const time = element("time", { datetime: event.at }, dateAndTime(event.at));
            item.append(time, " ", element("span", {}, event.text));
            return item;
        }));
    };

    const showPool = (section, pool, now) => {
        setText(part(section, "summary"), `${available(pool)} of ${pool.peers.length} peers available`);
        part(section, "closed").hidden = !pool.closed;
        const failure = part(section, "host-failure");
        setText(failure, pool.host_failure ?? "");
        failure.parentElement.hidden = !pool.host_failure;

        const series = pool.peers.map((peer) => reports.slice(1).map((after, at) => ({
            from: reports[at].process.uptime_seconds,
            to: after.process.uptime_seconds,
            figures: after.figures.get(keyOf(pool.name, peer.id)) ?? UNKNOWN,
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
        const [used, open] = [sum((peer) => peer.in_use), sum((peer) => peer.connections)];
        setText(
            part(section, "work"),
            `, ${used} of ${open} connections in use, ${rounded(rate)} queries per second`,
        );
        showTransactions(section, pool);
        showEvents(section, pool);
    };

    const titleOf = (pool) => {
        if (pool.closed) return `${pool.name} closed`;
        return `${pool.name} ${available(pool)}/${pool.peers.length} available`;
    };

    // Announces what has happened since the previous report to users of screen readers.
    const announce = (before) => {
        const keyOfEvent = (event) => event.at + event.text;
        const known = before.pools.flatMap((pool) => pool.events.map(keyOfEvent));
        const all = report.pools.flatMap((pool) => [
            ...pool.events
                .filter((event) => !known.includes(keyOfEvent(event)))
                .map((event) => event.text),
            ...(pool.closed && !before.pools.find((other) => other.name === pool.name)?.closed
                ? [`${pool.name} is closed`]
                : []),
        ]);
        if (all.length) setText(byId("spoken"), `${all.join(". ")}.`);
    };

    const show = () => {
        const sections = [...document.querySelectorAll("section")];
        const names = (pools) => JSON.stringify(pools);
        const shown = names(sections.map((section) => section.dataset.pool));
        if (shown !== names(report.pools.map((pool) => pool.name))) {
            location.reload();
            return;
        }
        setText(byId("at"), dateAndTime(report.at));
        setText(byId("uptime"), duration(report.process.uptime_seconds));
        const now = figuresOfAll(recent(), report);
        sections.forEach((section, at) => showPool(section, report.pools[at], now));
        document.title = report.pools.map(titleOf).join(", ") || document.title;
    };

    const setOutdated = (isOutdated) => {
        document.documentElement.classList.toggle("outdated", isOutdated);
        setText(byId("live"), isOutdated ? "Outdated, as of" : "Live,");
        if (isOutdated && !document.title.startsWith("Outdated: ")) {
            document.title = `Outdated: ${document.title}`;
        }
    };

    // The text stays until the next report or error replaces it.
    const notify = (text) => setText(byId("notice"), text);

    const receive = (answer) => {
        const { id, pid, host } = answer.process;
        if (id !== process.id) {
            notify(
                `Another process answers (${pid}${host ? ` on ${host}` : ""}): the application was ` +
                "restarted, or several processes share this address. This page still shows process " +
                `${process.pid}. Reload the page to see the other process.`,
            );
            setOutdated(performance.now() - lastReportAt > TIMEOUT);
            return;
        }
        const before = report;
        lastReportAt = performance.now();
        report = answer;
        report.figures = figuresOfAll(reports.at(-1) ?? answer, answer);
        reports.push(report);
        const oldest = answer.process.uptime_seconds - CHARTED;
        while (reports[0].process.uptime_seconds < oldest) reports.shift();
        notify("");
        show();
        setOutdated(false);
        announce(before);
    };

    const ask = async (options) => {
        const response = await fetch("?json", {
            cache: "no-store",
            signal: AbortSignal.timeout(TIMEOUT),
            ...options,
        });
        const type = response.headers.get("Content-Type");
        if (!type?.includes("application/json")) {
            throw new Error(
                `the response is not a report (status ${response.status}, type ${type})`,
            );
        }
        return response.json();
    };

    const poll = async () => {
        try {
            receive(await ask({}));
        } catch (error) {
            const reason = error instanceof TypeError ? "the server cannot be reached" : error.message;
            notify(`This page is outdated, as of ${dateAndTime(report.at)} UTC: ${reason}.`);
            setOutdated(true);
        }
        setTimeout(poll, document.hidden ? HIDDEN_POLL : POLL);
    };

    const question = byId("question");
    const isConfirmed = (text) => new Promise((answer) => {
        setText(byId("asked"), text);
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
        if (answer.error) setText(byId("outcome"), answer.error);
        if (answer.pools) receive(answer);
    };

    document.addEventListener("submit", async (event) => {
        const form = event.target;
        if (form.method !== "post") return;
        event.preventDefault();
        const button = form.querySelector("button");
        if (button.getAttribute("aria-disabled") === "true") return;
        button.setAttribute("aria-disabled", "true");
        setText(byId("outcome"), "");
        try {
            await send(form, button);
        } catch (error) {
            setText(byId("outcome"), `It is unknown whether the action was done: ${error.message}.`);
        }
        button.removeAttribute("aria-disabled");
    });

    document.documentElement.classList.add("live");
    setText(
        byId("legend"),
        "Figures: the last 10 seconds. Charts: the last 2 minutes, shaded while a peer was not up; " +
        "all peers of a pool have one scale.",
    );
    receive(report);
    setTimeout(poll, POLL);
})();
