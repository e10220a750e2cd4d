# Collects commands that undo things, and runs them, last promised first, once the program that promised them is gone.
# Input lines: "add KEY COMMAND" or "drop KEY -", separated by tabs. $1 is the program's process id.
# Signals that end a test run must not end its cleaning.
trap '' INT TERM HUP QUIT
declare -A todo=()
order=()
begun=
while true; do
    if IFS= read -r -t 2 part; then
        what='' key='' command=''
        IFS=$'\t' read -r what key command <<<"$begun$part"
        begun=
        case $what in
        add) todo[$key]=$command; order+=("$key") ;;
        drop) unset "todo[$key]" ;;
        esac
    elif [ $? -le 128 ]; then
        break # end of input: the program closed its side, or ended
    else
        # The two seconds may end in the middle of a line that has just arrived.
        begun+=$part
        # A program with a thread stuck in a dead mount becomes a zombie that still holds our input open.
        state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null)
        case $state in "" | Z | X) break ;; esac
    fi
done
for ((i = ${#order[@]} - 1; i >= 0; i--)); do
    command=${todo[${order[i]}]-}
    if [ -n "$command" ]; then eval "$command"; fi
done </dev/null >/dev/null 2>&1
