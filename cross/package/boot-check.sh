#!/usr/bin/env bash
# What cross/boot.sh has its board do, as root, at each of two boots: the power is cut during the first.
set -Eeuo pipefail
cd /root/check
export LC_ALL=C HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin

say() { printf '\nboot-check: %s\n' "$*"; }
at=''
trap 'at="$LINENO ${BASH_LINENO[*]}"' ERR
ended() {
    local status=$?
    if [ $status != 0 ]; then
        systemctl --no-pager status offshoot.service offshoot.socket || true
        journalctl --no-pager -u offshoot -n 60 || true
        say "failed with $status, lines $at"
    fi
    systemctl poweroff --no-block
}
trap ended EXIT

systemd=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
is() { [ "$(systemctl show -p "$1" --value "${3:-offshoot.service}")" = "$2" ]; }
main() { systemctl show -p MainPID --value offshoot.service; }
kept() { offshoot --json status | grep -oE '"kept": *[0-9]+' | grep -oE '[0-9]+'; }
until_ready() { # SECONDS
    for _ in $(seq "$1"); do
        if offshoot status >/dev/null 2>&1; then return 0; fi
        sleep 1
    done
    return 1
}

first() {
    say "$(systemctl --version | head -1), $(uname -r)"
    dpkg --install offshoot.deb
    is ActiveState inactive
    # 1: a fault of this machine, which is said.
    offshoot doctor --state /var/lib/offshoot || [ $? = 1 ]

    say 'a base, packed by the user of the daemon'
    install -o offshoot -m 644 minilm-l6.onnx minilm-l6.tokenizer.json /var/lib/offshoot
    runuser -u offshoot -- offshoot pack /var/lib/offshoot/minilm-l6.onnx -o /var/lib/offshoot/model.base \
        --tokenizer /var/lib/offshoot/minilm-l6.tokenizer.json
    rm /var/lib/offshoot/minilm-l6.*
    sed -i -e 's/^# adapter = .*/adapter = "home"/' -e 's/^enabled = true/enabled = false/' \
        -e 's/^epochs = .*/epochs = 1/' -e 's/^min_steps = .*/min_steps = 12/' -e 's/^batch = 16/batch = 8/' \
        -e 's/^learning_rate = .*/learning_rate = 0.001/' -e 's/^min_holdout = .*/min_holdout = 6/' \
        /etc/offshoot/offshoot.toml
    offshoot serve --check --config /etc/offshoot/offshoot.toml

    say 'the units'
    systemctl enable --now offshoot.socket offshoot.service
    is ActiveState active
    is ActiveState active offshoot.socket
    until_ready 60
    systemd-analyze security --no-pager offshoot.service | tail -1
    # The sandbox is there, not only written down.
    local status=/proc/$(main)/status
    grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp|VmRSS)' "$status"
    grep -q '^Seccomp:.2' "$status"
    grep -q '^NoNewPrivs:.1' "$status"
    grep -q '^CapEff:.0000000000000000' "$status"
    [ "$(stat -c %U "/proc/$(main)")" = offshoot ]
    [ "$(stat -c '%a %U %G' /run/offshoot/offshoot.sock)" = '660 offshoot offshoot' ]
    offshoot predict --no-adapter --text 'play some jazz' | tail -1

    say 'feedback, training, promotion'
    local label text
    while IFS=$'\t' read -r label text; do
        offshoot feedback --adapter home --text "$text" --label "$label" >/dev/null
    done < <(head -60 samples)
    [ "$(kept)" = 60 ]
    offshoot train-now home --wait &
    local job=$!
    # What holds the training child: 128 MiB, by a group of its own where systemd put the daemon into a
    # subgroup (DelegateSubgroup, 254), else by a limit on what no file backs.
    local service=/sys/fs/cgroup/system.slice/offshoot.service daemon pid
    daemon=$(main)
    : >groups
    : >limits
    while kill -0 $job 2>/dev/null; do
        find $service -mindepth 2 -name memory.max -exec grep -H . {} + 2>/dev/null >>groups || true
        for pid in $(find $service -name cgroup.procs -exec cat {} + 2>/dev/null); do
            [ "$pid" = "$daemon" ] || grep -s '^Max data size' "/proc/$pid/limits" >>limits || true
        done
        sleep 0.5
    done
    wait $job
    sort -u groups limits
    if [ "$systemd" -ge 254 ]; then
        grep -q '/train-[0-9]*/memory.max:134217728$' groups
    else
        grep -qE '^Max data size +134217728 +134217728' limits
    fi
    offshoot status
    offshoot predict --text 'play some jazz'
    offshoot predict --text 'play some jazz' | head -1 | grep -q music_play

    say 'reload, watchdog, a base that is missing, stop'
    local before
    before=$(main)
    sed -i 's/^max_load = .*/max_load = 0.9/' /etc/offshoot/offshoot.toml
    systemctl reload offshoot
    sleep 3
    is MainPID "$before"
    journalctl -u offshoot | grep 'the configuration was read anew' >/dev/null
    until_ready 10
    kill -STOP "$before"
    for _ in $(seq 200); do
        if is NRestarts 1 && is ActiveState active; then break; fi
        sleep 1
    done
    is NRestarts 1
    until_ready 60
    offshoot predict --text 'play some jazz' | tail -1
    [ "$(kept)" = 60 ]
    # What was on trial when it struck serves no more.
    offshoot --json status | grep -E '"active": *null' >/dev/null
    # Exit code 3 is not mended by starting again.
    mv /var/lib/offshoot/model.base /var/lib/offshoot/away.base
    if systemctl restart offshoot; then false; fi
    sleep 8
    is ActiveState failed
    is ExecMainStatus 3
    is NRestarts 0
    journalctl --no-pager -u offshoot -n 5
    mv /var/lib/offshoot/away.base /var/lib/offshoot/model.base
    systemctl reset-failed offshoot
    systemctl start offshoot
    until_ready 60
    systemctl stop offshoot
    is Result success
    is ActiveState inactive

    say 'a client wakes the daemon through its socket; then the power is cut'
    is ActiveState active offshoot.socket
    offshoot predict --no-adapter --text 'play some jazz' | tail -1
    is ActiveState active
    touch cut
    sync
    local n=0
    while IFS=$'\t' read -r label text; do
        offshoot feedback --adapter home --text "$text" --label "$label" >/dev/null
        n=$((n + 1))
        echo "acknowledged $n"
    done < <(tail -n +61 samples)
    say 'the power was not cut'
    return 1
}

second() {
    say 'after the power cut'
    is ActiveState active
    is ActiveState active offshoot.socket
    until_ready 120
    offshoot status
    # What cross/boot.sh has seen acknowledged; one more may have been on its way.
    local told
    told=$(sed 's/.*acknowledged=\([0-9]*\).*/\1/' /proc/cmdline)
    say "$told of them were acknowledged, $(($(kept) - 60)) are there"
    [ "$(kept)" -ge $((60 + told)) ]
    offshoot predict --adapter home@1 --text 'play some jazz' | head -1 | grep -q music_play
    offshoot --json status | grep '"label": *"timer"' >/dev/null
    offshoot forget --label timer
    offshoot --json status >after
    if grep '"label": *"timer"' after; then return 1; fi

    say 'removal'
    dpkg --purge offshoot
    for gone in /usr/bin/offshoot /var/lib/offshoot /etc/offshoot /run/offshoot; do [ ! -e $gone ]; done
    is LoadState not-found
    is LoadState not-found offshoot.socket
    say 'all shown'
}

if [ -e cut ]; then second; else first; fi
