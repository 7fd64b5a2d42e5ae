# The signals that this shell blocks and ignores, as bit masks (proc_pid_status(5)), and its soft limit of open files.
while read -r name value; do
    case $name in
        SigBlk: | SigIgn:) echo "$value" ;;
    esac
done <"/proc/$$/status"
ulimit -n
